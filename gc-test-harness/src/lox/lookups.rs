//! An isolate's cache of property lookups, shared by all sites.

/// Entries of the isolate's table of lookups, a power of two.
const LOOKUPS: usize = 512;

/// The meaning of a property's name for instances of one shape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Property {
    /// the field of this number
    Field(u32),
    /// this entry of the class's method table
    Method(u32),
    /// no property: reading it is an error, writing it adds a field
    Missing,
}

/// The result of one lookup. It names a shape by its id and is never cleared: a shape's fields and
/// its class's methods do not change after the first lookup.
#[derive(Clone, Copy)]
pub(super) struct Lookup {
    pub(super) shape: u32,
    pub(super) symbol: u32,
    pub(super) property: Property,
}

/// The table of lookups, which sites that see many shapes fall back to.
pub(super) struct Lookups(Box<[Lookup; LOOKUPS]>);

impl Lookups {
    pub(super) fn new() -> Lookups {
        Lookups(Box::new(
            [Lookup {
                shape: 0,
                symbol: 0,
                property: Property::Missing,
            }; LOOKUPS],
        ))
    }

    /// The table's entry for a symbol in a shape. The entry may hold another lookup.
    pub(super) fn place(&mut self, shape: u32, symbol: u32) -> &mut Lookup {
        let mixed = (shape.wrapping_mul(0x9E37_79B9) ^ symbol.wrapping_mul(0x85EB_CA6B)) as usize;
        &mut self.0[(mixed >> 8) % LOOKUPS]
    }
}
