//! Classes, shapes and fields: the meaning of `instance.name`, and the filling of inline caches
//! with it.

use super::bytecode::SYMBOL_INIT;
use super::cells::{INLINE_MAX, OutOfMemory};
use super::isolate::Vm;
use super::lookups::{Lookup, Property};
use super::object::*;
use super::proto::{CACHE_ADD, CACHE_METHOD, CACHE_OVERFLOW, Cache};
use super::value::Value;
use std::sync::atomic::{AtomicU64, Ordering};

/// Slots of an instance's first overflow cell; each further one has twice as many.
const FIRST_OVERFLOW: u32 = 4;
/// Elements of a class's first array of shapes.
const FIRST_SHAPES: u32 = 4;
/// Entries of a class's first method table.
const FIRST_METHODS: u32 = 8;

/// A field's place, as [`Cache::slot`] encodes it.
fn cached_place(shape: &Shape, field: u32) -> u32 {
    match field.checked_sub(shape.inline_capacity()) {
        None => field,
        Some(beyond) => CACHE_OVERFLOW | beyond,
    }
}

/// Properties.
impl Vm {
    /// The meaning of `symbol` for `instance`.
    ///
    /// # Safety
    /// `instance` must refer to a live instance.
    pub(super) unsafe fn property(&mut self, instance: Value, symbol: u32) -> Property {
        // SAFETY: the caller's promise.
        let shape_id = unsafe { header(instance) }.id();
        let known = *self.lookups.place(shape_id, symbol);
        if known.shape == shape_id && known.symbol == symbol {
            return known.property;
        }
        // SAFETY: the caller's promise.
        let property = unsafe {
            match field_number(shape_of(instance), symbol) {
                Some(field) => Property::Field(field),
                None => find_method(class_of(instance), symbol)
                    .map_or(Property::Missing, Property::Method),
            }
        };
        *self.lookups.place(shape_id, symbol) = Lookup {
            shape: shape_id,
            symbol,
            property,
        };
        property
    }

    /// Fills a cache with `property` for the instance's shape.
    ///
    /// # Safety
    /// `instance` must refer to a live instance, `cache` must be a function's own.
    pub(super) unsafe fn remember(
        &mut self,
        instance: Value,
        property: Property,
        cache: *mut Cache,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let slot = match property {
                Property::Field(field) => cached_place(&*shape_of(instance), field),
                Property::Method(entry) => CACHE_METHOD | entry,
                Property::Missing => return,
            };
            *cache = Cache {
                id: header(instance).id(),
                slot,
                header: 0,
            };
        }
    }

    /// The address of a field.
    ///
    /// # Safety
    /// `instance` must refer to a live instance with that field.
    pub(super) unsafe fn field(&self, instance: Value, field: u32) -> *mut Value {
        // SAFETY: the caller's promise.
        unsafe {
            let capacity = (*shape_of(instance)).inline_capacity();
            match field.checked_sub(capacity) {
                None => inline_slot(instance, field),
                Some(beyond) => overflow_slot(instance, beyond),
            }
        }
    }

    /// Adds the field `symbol` to `instance`. If the field is inline, the cache is filled.
    ///
    /// # Safety
    /// `instance` must refer to a live instance without that field, `cache` must be a function's
    /// own.
    pub(super) unsafe fn add_field(
        &mut self,
        instance: Value,
        symbol: u32,
        value: Value,
        cache: *mut Cache,
    ) -> Result<(), OutOfMemory> {
        let cell: *mut Instance = instance.as_cell();
        // SAFETY: the caller's promise, and the invariants of shapes: `fields` is the number of the
        // next field; an instance with more fields than inline slots has an overflow cell.
        unsafe {
            let old = shape_of(instance);
            let class = class_of(instance);
            let new = self.child_shape(class, old, symbol)?;
            let (number, capacity) = ((*old).fields, (*old).inline_capacity());
            if number < capacity {
                // The slot holds the zero of a fresh cell: an initialising store.
                *inline_slot(instance, number) = value;
                *cache = Cache {
                    id: (*cell).header.id(),
                    slot: CACHE_ADD | number,
                    header: (*new).instance_header.0,
                };
            } else if number == capacity {
                self.predict_more(class, capacity)?;
                let overflow = self.make_overflow(Value::cell(class), FIRST_OVERFLOW)?;
                *overflow.add(1).cast::<Value>() = value;
                self.store(&raw mut (*cell).class, Value::cell(overflow));
            } else {
                let overflow: *mut Overflow = (*cell).class.as_cell();
                let (used, room) = (number - capacity, (*overflow).header.index());
                if used < room {
                    *overflow_slot(instance, used) = value;
                } else {
                    let longer = self.make_overflow(Value::cell(class), room * 2)?;
                    let (from, to) = (
                        overflow.add(1).cast::<Value>(),
                        longer.add(1).cast::<Value>(),
                    );
                    copy_edges(from, to, room as usize);
                    *to.add(used as usize) = value;
                    self.store(&raw mut (*cell).class, Value::cell(longer));
                }
            }
            (*cell).header = (*new).instance_header;
        }
        Ok(())
    }
}

/// Shapes.
impl Vm {
    /// The shape of an instance of `shape` after the field `symbol` was added.
    ///
    /// # Safety
    /// `shape` must be a live shape of the live class `class`.
    unsafe fn child_shape(
        &mut self,
        class: *mut Class,
        shape: *mut Shape,
        symbol: u32,
    ) -> Result<*mut Shape, OutOfMemory> {
        // SAFETY: the caller's promise; the list of children is linked through live shapes of the
        // class.
        unsafe {
            let mut next = (*shape).first_child;
            while next.is_cell() {
                let child: *mut Shape = next.as_cell();
                if (*child).symbol == symbol {
                    return Ok(child);
                }
                next = (*child).next_sibling;
            }
            let child = self.new_shape(class, shape, symbol, (*shape).inline_capacity())?;
            self.store(&raw mut (*shape).first_child, Value::cell(child));
            Ok(child)
        }
    }

    /// A new shape with one field more than `parent`, or without fields if `parent` is null.
    ///
    /// # Safety
    /// `class` must be a live class, `parent` null or a live shape of it.
    unsafe fn new_shape(
        &mut self,
        class: *mut Class,
        parent: *mut Shape,
        symbol: u32,
        capacity: u32,
    ) -> Result<*mut Shape, OutOfMemory> {
        let id = self.new_id()?;
        // SAFETY: the caller's promise.
        unsafe {
            let index = (*class).shape_count;
            if index > MAX_INDEX {
                return Err(OutOfMemory);
            }
            let root = parent.is_null();
            let fields = if root { 0 } else { (*parent).fields + 1 };
            let tag = if fields > capacity {
                Tag::InstanceOverflow
            } else {
                Tag::Instance
            };
            let shape = self.make_shape(Shape {
                header: Header::new(Tag::Shape, capacity, 0),
                instance_header: Header::new(tag, index, id),
                fields,
                symbol,
                parent: if root {
                    Value::NIL
                } else {
                    Value::cell(parent)
                },
                first_child: Value::NIL,
                next_sibling: if root {
                    Value::NIL
                } else {
                    (*parent).first_child
                },
            })?;
            let room = (*(*class).shapes.as_cell::<Array>()).header.index();
            if index == room {
                let longer = self.make_array(room * 2)?;
                copy_edges(
                    shape_slot((*class).shapes, 0),
                    longer.add(1).cast::<Value>(),
                    room as usize,
                );
                self.store(&raw mut (*class).shapes, Value::cell(longer));
            }
            self.store(shape_slot((*class).shapes, index), Value::cell(shape));
            (*class).shape_count = index + 1;
            Ok(shape)
        }
    }

    /// Sets the number of inline slots of the class's future instances. Shapes of each capacity
    /// form a tree of their own, with its own root.
    ///
    /// # Safety
    /// `class` must be a live class.
    unsafe fn set_capacity(&mut self, class: *mut Class, capacity: u32) -> Result<(), OutOfMemory> {
        // SAFETY: the caller's promise.
        unsafe {
            let root = self.new_shape(class, std::ptr::null_mut(), 0, capacity)?;
            (*class).inline_capacity = capacity;
            (*class).instance_header = (*root).instance_header;
        }
        Ok(())
    }

    /// Raises the predicted capacity of the class, because an instance with `capacity` inline slots
    /// needs one field more.
    ///
    /// # Safety
    /// `class` must be a live class.
    unsafe fn predict_more(&mut self, class: *mut Class, capacity: u32) -> Result<(), OutOfMemory> {
        // SAFETY: the caller's promise.
        unsafe {
            if (*class).inline_capacity != capacity || capacity == INLINE_MAX {
                return Ok(());
            }
            self.set_capacity(class, (capacity * 2).clamp(2, INLINE_MAX))
        }
    }
}

/// Declarations.
impl Vm {
    /// A class whose methods set `fields` different fields on `this`.
    pub(super) fn new_class(&mut self, name: Value, fields: u32) -> Result<Value, OutOfMemory> {
        let shapes = self.make_array(FIRST_SHAPES)?;
        let class = self.make_class(name, Value::cell(shapes))?;
        // SAFETY: the class was just made, and this function's frame keeps it alive.
        unsafe { self.set_capacity(class, fields.next_multiple_of(2).min(INLINE_MAX))? };
        Ok(Value::cell(class))
    }

    /// Copies the superclass's methods into a class that has none yet, and adds its predicted
    /// fields.
    ///
    /// # Safety
    /// Both must refer to live classes.
    pub(super) unsafe fn copy_down(
        &mut self,
        superclass: Value,
        class: Value,
    ) -> Result<(), OutOfMemory> {
        let (from, to): (*mut Class, *mut Class) = (superclass.as_cell(), class.as_cell());
        // SAFETY: the caller's promise.
        unsafe {
            let capacity = ((*from).inline_capacity + (*to).inline_capacity).min(INLINE_MAX);
            if capacity > (*to).inline_capacity {
                self.set_capacity(to, capacity)?;
            }
            if (*from).methods.is_cell() {
                let old: *mut Methods = (*from).methods.as_cell();
                let entries = (*old).header.index();
                let copy = self.make_methods(entries)?;
                // An entry is two words. A key is a small number, which is no edge.
                copy_edges(
                    method_entry(old, 0).cast(),
                    method_entry(copy, 0).cast(),
                    2 * entries as usize,
                );
                (*copy).count = (*old).count;
                self.store(&raw mut (*to).methods, Value::cell(copy));
                self.store(&raw mut (*to).init, (*from).init);
            }
        }
        Ok(())
    }

    /// Adds a method to the class, or replaces the method of this name.
    ///
    /// # Safety
    /// `class` must refer to a live class, `method` to a live closure.
    pub(super) unsafe fn define_method(
        &mut self,
        class: Value,
        symbol: u32,
        method: Value,
    ) -> Result<(), OutOfMemory> {
        let cell: *mut Class = class.as_cell();
        // SAFETY: the caller's promise; tables are never full.
        unsafe {
            if symbol == SYMBOL_INIT {
                self.store(&raw mut (*cell).init, method);
            }
            if let Some(entry) = find_method(cell, symbol) {
                self.store(
                    &raw mut (*method_entry((*cell).methods.as_cell(), entry)).method,
                    method,
                );
                return Ok(());
            }
            if !(*cell).methods.is_cell() {
                let first = self.make_methods(FIRST_METHODS)?;
                self.store(&raw mut (*cell).methods, Value::cell(first));
            }
            let mut methods: *mut Methods = (*cell).methods.as_cell();
            let entries = (*methods).header.index();
            if ((*methods).count + 1) * 4 > u64::from(entries) * 3 {
                let larger = self.make_methods(entries * 2)?;
                for index in 0..entries {
                    let entry = *method_entry(methods, index);
                    if entry.key != 0 {
                        *free_entry(larger, entry.key) = entry;
                    }
                }
                (*larger).count = (*methods).count;
                self.store(&raw mut (*cell).methods, Value::cell(larger));
                methods = larger;
            }
            let entry = free_entry(methods, u64::from(symbol) + 1);
            self.store(&raw mut (*entry).method, method);
            (*entry).key = u64::from(symbol) + 1;
            (*methods).count += 1;
        }
        Ok(())
    }
}

/// Copies words into a fresh cell, one store a word. A marker may read the cell during the copy,
/// because it found the cell's address in a register. It must not read a torn word, and `memcpy`
/// does not promise to store whole words.
///
/// # Safety
/// `from` and `to` must have `words` words; `to` must lie in a cell to which nothing in the heap
/// refers yet.
unsafe fn copy_edges(from: *const Value, to: *mut Value, words: usize) {
    for word in 0..words {
        // SAFETY: the caller's promise. Relaxed: a marker that reads the zero of the fresh cell
        // instead follows the same edges from the old cell.
        unsafe {
            let to = AtomicU64::from_ptr(to.add(word).cast());
            to.store((*from.add(word)).0, Ordering::Relaxed);
        }
    }
}

/// The free entry for a key that is not in the table.
///
/// # Safety
/// `methods` must be a live table that is not full.
unsafe fn free_entry(methods: *mut Methods, key: u64) -> *mut MethodEntry {
    // SAFETY: the caller's promise.
    unsafe {
        let mask = (*methods).header.index() - 1;
        let mut index = (key as u32 - 1).wrapping_mul(0x9E37_79B9) >> 8 & mask;
        while (*method_entry(methods, index)).key != 0 {
            index = (index + 1) & mask;
        }
        method_entry(methods, index)
    }
}
