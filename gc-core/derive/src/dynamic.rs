//! `Trace` for an enum with a lifetime (a dynamic value), and `Plain`.

use proc_macro2::TokenStream as Tokens;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Attribute, Data, DataEnum, DeriveInput, Error, Fields, GenericParam, Lifetime, Type};

use crate::seen;

/// A variant that holds nothing, or one member.
struct Variant<'a> {
    variant: &'a syn::Variant,
    held: Option<&'a Type>,
}

fn variants(data: &DataEnum) -> Result<Vec<Variant<'_>>, Error> {
    data.variants.iter().map(|variant| {
        let mut fields = variant.fields.iter();
        let held = fields.next().map(|field| &field.ty);
        if let Some(more) = fields.next() {
            return Err(Error::new(
                more.span(),
                "a variant of a dynamic value holds one member, since a cell has one word for it: \
                 put the members into a struct that derives `Trace`, and hold a `Local` to it \
                 (or a pair of plain data that fits into 48 bits)",
            ));
        }
        Ok(Variant { variant, held })
    })
    .collect()
}

impl Variant<'_> {
    /// The variant with the tokens `inner` for its member, as a pattern or an expression.
    fn with(&self, inner: Tokens) -> Tokens {
        let name = &self.variant.ident;
        match &self.variant.fields {
            Fields::Unit => quote! { Self::#name },
            fields => {
                let member = fields.members();
                let inner = self.held.map(|_| quote! { : #inner });
                quote! { Self::#name { #(#member #inner)* } }
            }
        }
    }
}

/// The number of the variant that is marked as the one of a null word.
fn marked(variants: &[Variant<'_>]) -> Result<Option<usize>, Error> {
    let (mut null, mut default) = (None, None);
    for (at, variant) in variants.iter().enumerate() {
        for attribute in &variant.variant.attrs {
            if attribute.path().is_ident("default") {
                default = Some(at);
            } else if attribute.path().is_ident("trace") {
                if !is_null(attribute)? {
                    continue;
                }
                if null.replace(at).is_some() {
                    return Err(Error::new(
                        attribute.span(),
                        "two variants are marked `#[trace(null)]`, and a new field holds one of them",
                    ));
                }
            }
        }
    }
    Ok(null.or(default))
}

fn is_null(attribute: &Attribute) -> Result<bool, Error> {
    let mut null = false;
    attribute.parse_nested_meta(|meta| {
        if meta.path.is_ident("null") {
            null = true;
            return Ok(());
        }
        Err(meta.error(
            "a variant has the attribute `#[trace(null)]` only: it says what a new field holds",
        ))
    })?;
    Ok(null)
}

/// Implements `Dynamic` for an enum.
pub(crate) fn dynamic(input: &DeriveInput, data: &DataEnum) -> Result<Tokens, Error> {
    let lifetime = lifetime(input, data)?;
    let variants = variants(data)?;
    let marked = match marked(&variants)? {
        Some(at) => quote! { ::core::option::Option::Some(#at) },
        None => quote! { ::core::option::Option::None },
    };
    let mut generics = input.generics.clone();
    for parameter in generics.type_params_mut() {
        parameter.bounds.push(syn::parse_quote!(::gc_core::Trace));
    }
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    let name = &input.ident;
    // The same type with the lifetime of another scope.
    let arguments = |of: Tokens| {
        let arguments = generics.params.iter().map(|parameter| match parameter {
            GenericParam::Lifetime(_) => of.clone(),
            GenericParam::Type(parameter) => {
                let ident = &parameter.ident;
                quote! { #ident }
            }
            GenericParam::Const(parameter) => {
                let ident = &parameter.ident;
                quote! { #ident }
            }
        });
        quote! { <#(#arguments),*> }
    };
    let other = arguments(quote! { 'urge_other });

    let key = |at: usize| {
        quote! { const { ::gc_core::derived::key(<Self as ::gc_core::Dynamic>::CLASSES, #at) } }
    };
    let null = quote! {
        const {
            ::gc_core::derived::key(
                <Self as ::gc_core::Dynamic>::CLASSES,
                <Self as ::gc_core::Dynamic>::NULL,
            )
        }
    };
    let classes = variants.iter().map(|variant| match variant.held {
        // The tokens have the member's place, so an error points there.
        Some(ty) => quote_spanned! { ty.span() =>
            <#ty as ::gc_core::derived::Datum<#lifetime>>::CLASS
        },
        None => quote! { ::gc_core::derived::Class::Nothing },
    });
    let encodings = variants.iter().enumerate().map(|(at, variant)| {
        let pattern = variant.with(quote! { datum });
        let word = variant.held.map_or_else(
            || quote! { 0u64 },
            |ty| quote! { <#ty as ::gc_core::derived::Datum<#lifetime>>::into_word(datum) },
        );
        let key = key(at);
        quote! { #pattern => (#key, #at, #word), }
    });
    let decodings = variants.iter().enumerate().map(|(at, variant)| {
        let value = variant.with(variant.held.map_or_else(Tokens::new, |ty| {
            // SAFETY: `decode` has the contract that `Datum::from_word` asks: the word is one of this
            // enum, its key says that this variant has made it, and its cell lives.
            quote! { unsafe { <#ty as ::gc_core::derived::Datum<#lifetime>>::from_word(word) } }
        }));
        let its = key(at);
        quote! {
            if key == #its {
                return #value;
            }
        }
    });
    // An enum without type parameters is checked where it is declared.
    let checked =
        generics.type_params().next().is_none() && generics.const_params().next().is_none();
    let check = checked.then(|| {
        let all = arguments(quote! { 'static });
        quote_spanned! { name.span() =>
            const _: usize = <#name #all as ::gc_core::Dynamic>::NULL;
        }
    });
    let seen = seen(input, &generics);
    Ok(quote! {
        #seen

        // SAFETY: each variant has a key of its own, which its words carry. A variant holds nothing
        // or a `Datum` in the enum's lifetime. The function above compiles only if the derive has
        // read all members.
        #[automatically_derived]
        unsafe impl #impl_generics ::gc_core::Dynamic for #name #type_generics #where_clause {
            type In<'urge_other> = #name #other;

            const CLASSES: &'static [::gc_core::derived::Class] = &[#(#classes),*];

            const NULL: usize =
                ::gc_core::derived::null_variant(<Self as ::gc_core::Dynamic>::CLASSES, #marked);

            #[inline]
            #[allow(clippy::all)]
            fn encode(self) -> u64 {
                let (key, variant, word) = match self { #(#encodings)* };
                if variant == const { <Self as ::gc_core::Dynamic>::NULL } && word == 0 {
                    0
                } else {
                    key + word
                }
            }

            #[inline]
            #[allow(clippy::all)]
            unsafe fn decode(word: u64) -> Self {
                let key = if word == 0 {
                    #null
                } else {
                    ::gc_core::derived::key_of(word)
                };
                #(#decodings)*
                // SAFETY: the word was encoded by this enum, so one of the keys is its.
                unsafe { ::core::hint::unreachable_unchecked() }
            }
        }

        #check
    })
}

/// The enum's lifetime.
fn lifetime(input: &DeriveInput, data: &DataEnum) -> Result<Lifetime, Error> {
    let mut lifetimes = input.generics.lifetimes();
    let Some(lifetime) = lifetimes.next() else {
        return Err(Error::new(
            data.enum_token.span(),
            "an enum cannot hold edges in place: a marker would read them while the variant changes. \
             For a dynamic value of one word, give the enum the lifetime of a scope and hold `Local`s: \
             `enum Value<'s> { Nil, Node(Local<'s, Node>) }`; a cell holds it in a `ValueField<Value<'static>>`. \
             Without edges, derive `Leaf` instead, or `Plain` for a variant's data",
        ));
    };
    if let Some(more) = lifetimes.next() {
        return Err(Error::new(
            more.span(),
            "a dynamic value has one lifetime, that of the scope that its `Local`s belong to",
        ));
    }
    Ok(lifetime.lifetime.clone())
}

/// Implements `Plain` for an enum without data, or a struct of one member.
pub(crate) fn plain(input: &DeriveInput) -> Result<Tokens, Error> {
    let name = &input.ident;
    let (bits, into, from) = match &input.data {
        Data::Enum(data) => {
            if let Some(held) = data
                .variants
                .iter()
                .find(|variant| !variant.fields.is_empty())
            {
                return Err(Error::new(
                    held.fields.span(),
                    "the variants of a plain enum hold nothing: its numbers fit beside a tag",
                ));
            }
            if data.variants.is_empty() {
                return Err(Error::new(
                    name.span(),
                    "an enum without variants has no value",
                ));
            }
            let names: Vec<_> = data.variants.iter().map(|variant| &variant.ident).collect();
            let numbers: Vec<u64> = (0..names.len() as u64).collect();
            let last = numbers.len() - 1;
            let bits = usize::BITS - last.leading_zeros();
            let (first, rest) = (names[0], &names[1..]);
            let rest_numbers = &numbers[1..];
            (
                quote! { #bits },
                quote! { match self { #(Self::#names { .. } => #numbers,)* } },
                quote! { match bits { #(#rest_numbers => Self::#rest {},)* _ => Self::#first {} } },
            )
        }
        Data::Struct(data) if data.fields.len() == 1 => {
            let (member, field) = (
                data.fields.members().next(),
                data.fields.iter().next().map(|field| &field.ty),
            );
            let plain = quote_spanned! { field.span() => <#field as ::gc_core::Plain> };
            (
                quote! { #plain::BITS },
                quote! { #plain::into_bits(self.#member) },
                quote! { Self { #member: #plain::from_bits(bits) } },
            )
        }
        _ => {
            return Err(Error::new(
                name.span(),
                "plain data is an enum without data, or a struct of one member that is `Plain` \
                 (a pair, for example)",
            ));
        }
    };
    let (impl_generics, type_generics, where_clause) = input.generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #impl_generics ::gc_core::Plain for #name #type_generics #where_clause {
            const BITS: u32 = #bits;

            #[inline]
            fn into_bits(self) -> u64 {
                #into
            }

            #[inline]
            fn from_bits(bits: u64) -> Self {
                #from
            }
        }
    })
}
