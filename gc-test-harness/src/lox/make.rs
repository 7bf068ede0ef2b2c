//! Makes cells, with one function for each sort. The runtime allocates nowhere else; compiled code
//! allocates instances inline.

use super::cells::{OutOfMemory, SHORT_STRING, SPARE};
use super::isolate::Vm;
use super::object::*;
use super::proto::Proto;
use super::value::Value;
use gc_core::raw::{KindId, Site};

/// The makers. Each initialises its cell with plain stores, because no other code has the cell yet.
impl Vm {
    #[inline(always)]
    fn cell_at<T>(&mut self, site: Site) -> Result<*mut T, OutOfMemory> {
        // SAFETY: the site belongs to this mutator's heap; every kind of Lox allows a zero cell,
        // and the maker initialises it.
        match unsafe { self.mutator.alloc_at(site) } {
            Ok(cell) => Ok(cell.as_ptr().cast()),
            Err(_) => Err(OutOfMemory),
        }
    }

    fn cell_of<T>(&mut self, kind: KindId, bytes: usize) -> Result<*mut T, OutOfMemory> {
        // SAFETY: as in `cell_at`.
        match unsafe { self.mutator.alloc_raw(kind, bytes) } {
            Ok(cell) => Ok(cell.as_ptr().cast()),
            Err(_) => Err(OutOfMemory),
        }
    }

    /// A string cell whose bytes and hash the caller fills in.
    pub(super) fn make_string(&mut self, length: usize) -> Result<*mut Str, OutOfMemory> {
        let length32 = u32::try_from(length).map_err(|_| OutOfMemory)?;
        let bytes = STRING_BYTES + length + SPARE;
        let string: *mut Str = if length <= SHORT_STRING {
            self.cell_at(self.lox.cells.strings[bytes.div_ceil(16)])?
        } else {
            self.cell_of(self.lox.cells.string, bytes)?
        };
        // SAFETY: only this function has the cell, which is large enough.
        unsafe {
            (*string).header = Header::new(Tag::String, 0, 0);
            (*string).length = length32;
        }
        Ok(string)
    }

    pub(super) fn make_native(&mut self, function: NativeFn) -> Result<Value, OutOfMemory> {
        let native: *mut Native = self.cell_at(self.lox.cells.native)?;
        // SAFETY: only this function has the cell, which is large enough.
        unsafe {
            native.write(Native {
                header: Header::new(Tag::Native, 0, 0),
                function,
            })
        };
        Ok(Value::cell(native))
    }

    /// A closure whose upvalues the caller fills in.
    #[inline]
    pub(super) fn make_closure(&mut self, proto: *mut Proto) -> Result<*mut Closure, OutOfMemory> {
        // SAFETY: protos live as long as the isolate.
        let (upvalues, id) = unsafe { ((*proto).upvalues, (*proto).id) };
        let closure: *mut Closure = self.cell_at(self.lox.cells.closures[upvalues as usize])?;
        // SAFETY: only this function has the cell, which is large enough.
        unsafe {
            closure.write(Closure {
                header: Header::new(Tag::Closure, upvalues, id),
                proto,
            })
        };
        Ok(closure)
    }

    pub(super) fn make_upvalue(
        &mut self,
        location: *mut Value,
        next: Value,
    ) -> Result<*mut Upvalue, OutOfMemory> {
        let upvalue: *mut Upvalue = self.cell_at(self.lox.cells.upvalue)?;
        // SAFETY: only this function has the cell, which is large enough.
        unsafe {
            upvalue.write(Upvalue {
                location,
                closed: Value::NIL,
                next,
            })
        };
        Ok(upvalue)
    }

    /// A class without shapes.
    pub(super) fn make_class(
        &mut self,
        name: Value,
        shapes: Value,
    ) -> Result<*mut Class, OutOfMemory> {
        let id = self.new_id()?;
        let class: *mut Class = self.cell_at(self.lox.cells.class)?;
        // SAFETY: only this function has the cell, which is large enough.
        unsafe {
            class.write(Class {
                header: Header::new(Tag::Class, 0, id),
                instance_header: Header(0),
                inline_capacity: 0,
                shape_count: 0,
                name,
                methods: Value::NIL,
                init: Value::NIL,
                shapes,
            });
        }
        Ok(class)
    }

    pub(super) fn make_shape(&mut self, shape: Shape) -> Result<*mut Shape, OutOfMemory> {
        let cell: *mut Shape = self.cell_at(self.lox.cells.shape)?;
        // SAFETY: only this function has the cell, which is large enough.
        unsafe { cell.write(shape) };
        Ok(cell)
    }

    /// An instance without fields.
    #[inline]
    pub(super) fn make_instance(&mut self, class: *mut Class) -> Result<Value, OutOfMemory> {
        // SAFETY: `class` is a live class.
        let (header, capacity) = unsafe { ((*class).instance_header, (*class).inline_capacity) };
        let instance: *mut Instance = self.cell_at(self.lox.cells.instance_site(capacity))?;
        // SAFETY: only this function has the cell, which is large enough. Its slots are zero.
        unsafe {
            instance.write(Instance {
                header,
                class: Value::cell(class),
            })
        };
        Ok(Value::cell(instance))
    }

    pub(super) fn make_overflow(
        &mut self,
        class: Value,
        slots: u32,
    ) -> Result<*mut Overflow, OutOfMemory> {
        if slots > MAX_INDEX {
            return Err(OutOfMemory);
        }
        let overflow: *mut Overflow = self.cell_of(
            self.lox.cells.overflow,
            size_of::<Overflow>() + 8 * slots as usize + SPARE,
        )?;
        // SAFETY: only this function has the cell, which is large enough.
        unsafe {
            overflow.write(Overflow {
                header: Header::new(Tag::Overflow, slots, 0),
                class,
            })
        };
        Ok(overflow)
    }

    pub(super) fn make_array(&mut self, elements: u32) -> Result<*mut Array, OutOfMemory> {
        if elements > MAX_INDEX {
            return Err(OutOfMemory);
        }
        let array: *mut Array = self.cell_of(
            self.lox.cells.array,
            size_of::<Array>() + 8 * elements as usize + SPARE,
        )?;
        // SAFETY: only this function has the cell, which is large enough.
        unsafe {
            array.write(Array {
                header: Header::new(Tag::Array, elements, 0),
            })
        };
        Ok(array)
    }

    /// A channel whose fields the caller fills in.
    pub(super) fn make_channel_cell(&mut self) -> Result<*mut Channel, OutOfMemory> {
        self.cell_at(self.lox.cells.channel)
    }

    pub(super) fn make_methods(&mut self, entries: u32) -> Result<*mut Methods, OutOfMemory> {
        if entries > MAX_INDEX {
            return Err(OutOfMemory);
        }
        let bytes = size_of::<Methods>() + size_of::<MethodEntry>() * entries as usize + SPARE;
        let methods: *mut Methods = self.cell_of(self.lox.cells.methods, bytes)?;
        // SAFETY: only this function has the cell, which is large enough.
        unsafe {
            methods.write(Methods {
                header: Header::new(Tag::Methods, entries, 0),
                count: 0,
            })
        };
        Ok(methods)
    }

    pub(super) fn make_interned(&mut self, entries: usize) -> Result<*mut Interned, OutOfMemory> {
        let bytes = size_of::<Interned>() + size_of::<InternEntry>() * entries + SPARE;
        let interned: *mut Interned = self.cell_of(self.lox.cells.interned, bytes)?;
        // SAFETY: only this function has the cell, which is large enough.
        unsafe {
            interned.write(Interned {
                capacity: entries as u64,
                used: 0,
            })
        };
        Ok(interned)
    }

    #[inline]
    pub(super) fn make_bound(
        &mut self,
        receiver: Value,
        method: Value,
    ) -> Result<Value, OutOfMemory> {
        let bound: *mut BoundMethod = self.cell_at(self.lox.cells.bound)?;
        // SAFETY: only this function has the cell, which is large enough.
        unsafe {
            bound.write(BoundMethod {
                header: Header::new(Tag::BoundMethod, 0, 0),
                receiver,
                method,
            })
        };
        Ok(Value::cell(bound))
    }

    /// Stores a value into a cell that other code may have, with the heap's barrier.
    ///
    /// # Safety
    /// `slot` must be a word of a live cell that its kind traces boxed, or a word of a root range
    /// (which needs no barrier).
    #[inline(always)]
    pub(super) unsafe fn store(&mut self, slot: *mut Value, value: Value) {
        // SAFETY: the caller's promise.
        unsafe { self.mutator.write(slot.cast(), value.0 as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lox::compiler::compile;
    use crate::lox::isolate::{NATIVES, Output};
    use crate::lox::run::{RunConfig, make_heap};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    #[test]
    fn what_loops_run_over_ends_inside_its_cell() {
        let program = compile(b"", &NATIVES).expect("a right program");
        let lox = make_heap(&RunConfig::default()).expect("a heap");
        let mut vm =
            Vm::new(&lox, Arc::new(program), Output::Kept(Vec::new())).expect("an isolate");
        // The base of each cell and the end of its last word or byte. The cells are few, so no
        // collection begins.
        let mut ends = Vec::new();
        let mut made = |cell: usize, bytes: usize| ends.push((cell, cell + bytes));
        for length in 0..600 {
            let string = vm.make_string(length).expect("room");
            made(string as usize, STRING_BYTES + length);
        }
        for n in 1..64_u32 {
            let (words, entries) = (8 * n as usize, 16 * n as usize);
            let array = vm.make_array(n).expect("room");
            made(array as usize, size_of::<Array>() + words);
            let overflow = vm.make_overflow(Value::NIL, n).expect("room");
            made(overflow as usize, size_of::<Overflow>() + words);
            let methods = vm.make_methods(n).expect("room");
            made(methods as usize, size_of::<Methods>() + entries);
            let table = vm.make_interned(n as usize).expect("room");
            made(table as usize, size_of::<Interned>() + entries);
        }
        // The room is allocated before the stop: nothing may be allocated while the world is
        // stopped.
        let mut cells = Vec::with_capacity(1 << 18);
        let mut look = || {
            lox.heap
                .for_each_cell(|cell| cells.push((cell.base, cell.size)))
        };
        vm.mutator.blocking(|| {
            std::thread::scope(|scope| {
                scope
                    .spawn(&mut look)
                    .join()
                    .expect("it looks")
                    .expect("no mutator looks");
            });
        });
        let cells: BTreeMap<usize, usize> = cells.into_iter().collect();
        for (cell, end) in ends {
            assert!(
                end < cell + cells[&cell],
                "a cell of {} bytes ends at its end",
                end - cell
            );
        }
        for (upvalues, site) in lox.cells.closures.iter().enumerate().skip(1) {
            assert!(size_of::<Closure>() + 8 * upvalues < site.size());
        }
    }
}
