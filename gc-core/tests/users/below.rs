//! An attribute macro that replaces the item below it.
use proc_macro::TokenStream;

/// Replaces the item by the attribute's argument.
#[proc_macro_attribute]
pub fn becomes(other: TokenStream, _: TokenStream) -> TokenStream {
    other
}
