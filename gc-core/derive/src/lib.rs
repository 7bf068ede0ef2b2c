//! The derives `Trace`, `Leaf` and `Plain` of gc-core: they find the edges of a type in its
//! members.
//!
//! Neither derive reads the names of types. Each generates what must hold for every member (`Trace`
//! or `Leaf`), with the member's place in the source, and the compiler checks it. So type aliases
//! and macros work, and an error points at the member.
//!
//! An attribute macro below a derive may change the type after the derive has read it. So each
//! derive also generates a list of all members with their types: if a member was added or changed
//! since, the list does not compile.

mod dynamic;

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Fields, GenericParam, Generics, Member, parse_quote};

/// Derives `gc_core::Trace` for a struct. Its edges are those of its members; each member must be
/// `Trace`.
///
/// For an enum with one lifetime it derives `gc_core::Dynamic`: the enum is a dynamic value.
#[proc_macro_derive(Trace, attributes(trace))]
pub fn derive_trace(input: TokenStream) -> TokenStream {
    finish(trace(&syn::parse_macro_input!(input as DeriveInput)))
}

/// Derives `gc_core::Leaf` for a struct or an enum without edges. Each member must be `Leaf`.
#[proc_macro_derive(Leaf)]
pub fn derive_leaf(input: TokenStream) -> TokenStream {
    finish(leaf(&syn::parse_macro_input!(input as DeriveInput)))
}

/// Derives `gc_core::Plain` for an enum without data, or a struct of one member that is `Plain`:
/// the data of a dynamic value's variant.
#[proc_macro_derive(Plain)]
pub fn derive_plain(input: TokenStream) -> TokenStream {
    finish(dynamic::plain(&syn::parse_macro_input!(
        input as DeriveInput
    )))
}

fn finish(result: Result<Tokens, Error>) -> TokenStream {
    result.unwrap_or_else(Error::into_compile_error).into()
}

fn trace(input: &DeriveInput) -> Result<Tokens, Error> {
    let fields = match &input.data {
        Data::Struct(data) => &data.fields,
        Data::Enum(data) => return dynamic::dynamic(input, data),
        Data::Union(data) => {
            return Err(Error::new(
                data.union_token.span(),
                "a union cannot hold edges: a marker could not know which member is there",
            ));
        }
    };
    refuse_packed(input)?;
    let generics = bounded(&input.generics, &parse_quote!(::gc_core::Trace))?;
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    let name = &input.ident;
    let edges = members(fields).map(|(member, ty)| {
        // The tokens have the member's place, so an error points there.
        quote_spanned! { ty.span() =>
            <#ty as ::gc_core::Trace>::edges(
                &mut |offset| edge(offset + ::core::mem::offset_of!(Self, #member)),
            );
        }
    });
    // A member with a trace function has its edges at no fixed offsets, so the derive would lose
    // them.
    let checks = members(fields).map(|(_, ty)| {
        quote_spanned! { ty.span() =>
            ::core::assert!(
                <#ty as ::gc_core::Trace>::TRACE.is_none(),
                "a type with a trace function cannot be a member of a struct that derives Trace: hold a Field to it",
            );
        }
    });
    let tagged = members(fields).map(|(_, ty)| {
        quote_spanned! { ty.span() => <#ty as ::gc_core::Trace>::TAGGED }
    });
    let seen = seen(input, &generics);
    Ok(quote! {
        #seen

        // SAFETY: the edges are those of the members, each at its offset, and every member is
        // `Trace`. The function above compiles only if the derive has read all members.
        #[automatically_derived]
        unsafe impl #impl_generics ::gc_core::Trace for #name #type_generics #where_clause {
            const TRACE: ::core::option::Option<::gc_core::raw::TraceFn> = {
                #(#checks)*
                ::core::option::Option::None
            };

            const TAGGED: bool = false #(|| #tagged)*;

            #[inline(always)]
            #[allow(unused_variables, clippy::all)]
            fn edges(edge: &mut impl ::core::ops::FnMut(usize)) {
                #(#edges)*
            }
        }
    })
}

fn leaf(input: &DeriveInput) -> Result<Tokens, Error> {
    let fields: Vec<&Fields> = match &input.data {
        Data::Struct(data) => vec![&data.fields],
        Data::Enum(data) => data.variants.iter().map(|v| &v.fields).collect(),
        Data::Union(data) => {
            return Err(Error::new(
                data.union_token.span(),
                "a union cannot be `Leaf`: the compiler cannot check that no member holds an edge",
            ));
        }
    };
    let generics = bounded(&input.generics, &parse_quote!(::gc_core::Leaf))?;
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    let name = &input.ident;
    let checks = fields.iter().flat_map(|f| members(f)).map(|(_, ty)| {
        quote_spanned! { ty.span() => is_leaf::<#ty>(); }
    });
    let seen = seen(input, &generics);
    Ok(quote! {
        #seen

        // SAFETY: every member is `Leaf`: otherwise the function below does not compile. The
        // function above compiles only if the derive has read all members.
        #[automatically_derived]
        unsafe impl #impl_generics ::gc_core::Leaf for #name #type_generics #where_clause {}

        const _: () = {
            fn is_leaf<T: ::gc_core::Leaf + ?::core::marker::Sized>() {}
            // In an `impl`, where `Self` means what it means in the type.
            trait UrgeMembers {
                fn members();
            }
            #[automatically_derived]
            #[allow(dead_code)]
            impl #impl_generics UrgeMembers for #name #type_generics #where_clause {
                fn members() {
                    #(#checks)*
                }
            }
        };
    })
}

/// Generates a function that compiles only if the type has exactly the members that the derive has
/// read, with the same types.
pub(crate) fn seen(input: &DeriveInput, generics: &Generics) -> Tokens {
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    let name = &input.ident;
    let body = match &input.data {
        Data::Struct(data) => {
            let names = data.fields.members();
            let types = members(&data.fields).map(|(member, ty)| {
                // By raw pointers, since the struct may be packed.
                quote_spanned! { ty.span() => same::<_, #ty>(&raw const this.#member); }
            });
            let all = quote_spanned! { name.span() => let Self { #(#names: _,)* } = this; };
            quote! {
                #all
                #(#types)*
            }
        }
        Data::Enum(data) => {
            let arms = data.variants.iter().map(|variant| {
                let name = &variant.ident;
                let bound = |at: usize| quote::format_ident!("member_{at}");
                let pattern = variant.fields.members().enumerate().map(|(at, member)| {
                    let bound = bound(at);
                    quote! { #member: #bound }
                });
                let types = variant.fields.iter().enumerate().map(|(at, field)| {
                    let (bound, ty) = (bound(at), &field.ty);
                    quote_spanned! { ty.span() => same::<_, #ty>(#bound); }
                });
                let pattern = quote_spanned! { name.span() => Self::#name { #(#pattern,)* } };
                quote! { #pattern => { #(#types)* } }
            });
            let none = data.variants.is_empty().then(|| quote! { *this });
            let this = none.unwrap_or_else(|| quote! { this });
            quote! { match #this { #(#arms)* } }
        }
        // Neither derive accepts a union.
        Data::Union(_) => Tokens::new(),
    };
    quote! {
        const _: () = {
            trait UrgeSame<T: ?::core::marker::Sized> {}
            impl<T: ?::core::marker::Sized> UrgeSame<T> for T {}
            #[allow(dead_code)]
            fn same<A: UrgeSame<B> + ?::core::marker::Sized, B: ?::core::marker::Sized>(_: *const A) {}
            trait UrgeSeen {
                fn seen(this: &Self);
            }
            #[automatically_derived]
            #[allow(dead_code, unused_variables, deprecated, clippy::all)]
            impl #impl_generics UrgeSeen for #name #type_generics #where_clause {
                fn seen(this: &Self) {
                    #body
                }
            }
        };
    }
}

fn members(fields: &Fields) -> impl Iterator<Item = (Member, &syn::Type)> {
    fields.members().zip(fields.iter().map(|f| &f.ty))
}

/// Adds the bound to each type parameter. A lifetime parameter is an error: a cell outlives every
/// borrow.
fn bounded(generics: &Generics, bound: &syn::TypeParamBound) -> Result<Generics, Error> {
    let mut generics = generics.clone();
    for parameter in &mut generics.params {
        match parameter {
            GenericParam::Type(t) => t.bounds.push(bound.clone()),
            GenericParam::Const(_) => {}
            GenericParam::Lifetime(l) => {
                return Err(Error::new(
                    l.span(),
                    "a type in the heap cannot borrow: own the value, or hold it by a `Field`",
                ));
            }
        }
    }
    Ok(generics)
}

fn refuse_packed(input: &DeriveInput) -> Result<(), Error> {
    for attribute in input.attrs.iter().filter(|a| a.path().is_ident("repr")) {
        let mut packed = None;
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("packed") {
                packed = Some(meta.path.span());
            }
            // Skips the argument of `align(8)` and of similar attributes.
            if meta.input.peek(syn::token::Paren) {
                let inner;
                syn::parenthesized!(inner in meta.input);
                let _: Tokens = inner.parse()?;
            }
            Ok(())
        })?;
        if let Some(span) = packed {
            return Err(Error::new(
                span,
                "a packed struct cannot hold edges: an edge is an aligned word",
            ));
        }
    }
    Ok(())
}
