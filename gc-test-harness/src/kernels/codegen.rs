//! A layer over Cranelift: compiles functions into one arena and gives the facts that a stack
//! walker needs of each.
//!
//! The kernels beside this file and the Lox JIT compile through [`Arena`]. A collector that stops
//! threads at any instruction requires these settings:
//!
//! - **System V calling convention, RBP frames, never `tail`.** The walker follows RBP and
//!   computes a frame's SP as `FP - span`. The `tail` convention moves RBP, the return address and
//!   the arguments within a frame.
//! - **One arena for a module**, reserved at once and filled from its start, so that `call rel32`
//!   reaches every function and all code lies in one range.
//! - **No stack probes.** A frame has a few hundred bytes, much less than a guard page's 4 KiB,
//!   and an inline probe would move RSP in the middle of the prologue.
//! - **Facts are read between compilation and `clear_context`** ([`Function`]), because Cranelift
//!   discards them there. The table has an entry for each call site, not for each stack map. A call
//!   without live references has no map, and neither has a library call that Cranelift inserted by
//!   itself. The first means "no references", the second "unknown".

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cranelift_codegen::ir::{
    self, AbiParam, FuncRef, InstBuilder, Signature, SourceLoc, Type, UserStackMap,
};
use cranelift_codegen::isa::{CallConv, OwnedTargetIsa, TargetIsa, unwind::UnwindInst};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_codegen::{CompiledCode, Context, FinalizedRelocTarget};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{
    ArenaMemoryProvider, BranchProtection, JITBuilder, JITMemoryKind, JITMemoryProvider, JITModule,
};
use cranelift_module::{FuncId, Linkage, Module, ModuleError, ModuleResult};
use gc_core::Heap;
use gc_core::jit;
use gc_core::raw::Encoding;
use gc_preempt::World;
use gc_preempt::stackmap::StackMaps;
use gc_preempt::stackmap::cranelift::{Function, Site};
use gc_preempt::{CodeGuard, CodeSpec, CodeWhat, FrameRule};

use super::exact::{self, ExactFrame};

/// The default address space of an arena, in bytes: enough for each program here, and much less
/// than the 2 GiB that `call rel32` reaches. Only pages that hold code take memory.
pub const ARENA_BYTES: usize = 64 << 20;

/// The reason why code could not be compiled.
#[derive(Debug)]
pub enum CodegenError {
    /// Cranelift cannot generate code for this machine.
    Host(String),
    /// The arena's address space could not be reserved, or is full.
    Arena(String),
    /// Cranelift refused a declaration or a function's body.
    Compile {
        /// The function's name.
        function: String,
        /// Cranelift's message.
        why: String,
    },
    /// A compiled function could not be registered as managed code.
    Register {
        /// The function's name.
        function: String,
        /// The fault in its stack maps or its range.
        why: String,
    },
}

impl fmt::Display for CodegenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CodegenError::Host(why) => {
                write!(f, "cannot generate machine code on this host: {why}")
            }
            CodegenError::Arena(why) => write!(f, "no room for machine code: {why}"),
            CodegenError::Compile { function, why } => {
                write!(f, "cannot compile `{function}`: {why}")
            }
            CodegenError::Register { function, why } => {
                write!(f, "cannot register `{function}` as managed code: {why}")
            }
        }
    }
}

impl std::error::Error for CodegenError {}

/// The memory of an [`Arena`]. It is unmapped when the arena, all of its [`Code`] and all
/// registrations that own it are gone.
pub struct CodeMemory(Mutex<ArenaMemoryProvider>);

impl CodeMemory {
    fn lock(&self) -> MutexGuard<'_, ArenaMemoryProvider> {
        // A panic inside the provider leaves it as it was before the call, so a poisoned lock is
        // usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        // SAFETY: this is the last owner. No `Code` can be called any more, and no registration's
        // guard waits for a stack to return from the code.
        unsafe { self.lock().free_memory() };
    }
}

impl fmt::Debug for CodeMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CodeMemory")
    }
}

/// The provider through which `JITModule` uses [`CodeMemory`]. The module never frees the memory.
struct SharedProvider(Arc<CodeMemory>);

impl JITMemoryProvider for SharedProvider {
    fn allocate(
        &mut self,
        size: usize,
        align: u64,
        kind: JITMemoryKind,
    ) -> std::io::Result<*mut u8> {
        self.0.lock().allocate(size, align, kind)
    }

    unsafe fn free_memory(&mut self) {}

    fn finalize(&mut self, branch_protection: BranchProtection) -> ModuleResult<()> {
        JITMemoryProvider::finalize(&mut *self.0.lock(), branch_protection)
    }
}

/// Reads the facts that a walker needs of a function that was just compiled. `None`: a fact is
/// missing or contradicts another, which no released Cranelift causes.
fn facts_of(compiled: &CompiledCode, func: &ir::Function) -> Option<Function> {
    let buffer = &compiled.buffer;
    let layout = buffer.frame_layout()?;
    let frame_to_fp = layout.frame_to_fp_offset;
    let clobber = buffer
        .unwind_info
        .iter()
        .find_map(|(_, inst)| match inst {
            UnwindInst::DefineNewFrame {
                offset_downward_to_clobbers,
                ..
            } => Some(*offset_downward_to_clobbers),
            _ => None,
        })
        .filter(|&bytes| bytes <= frame_to_fp)?;
    let lowest_slot = func
        .sized_stack_slots
        .keys()
        .map(|slot| layout.stackslots[slot].offset)
        .min();
    let outgoing = lowest_slot.unwrap_or(frame_to_fp - clobber);
    let maps: HashMap<u32, &UserStackMap> = buffer
        .user_stack_maps()
        .iter()
        .map(|(return_offset, _, map)| (*return_offset, map))
        .collect();
    let may_call_library = buffer.relocs().iter().any(|reloc| {
        matches!(
            &reloc.target,
            FinalizedRelocTarget::ExternalName(ir::ExternalName::LibCall(_))
        )
    });
    let mut sites: Vec<Site> = buffer
        .call_sites()
        .map(|site| {
            let mut slots: Vec<u32> = maps
                .get(&site.ret_addr)
                .into_iter()
                .flat_map(|map| map.entries().map(|(_, offset)| offset))
                .collect();
            slots.sort_unstable();
            slots.dedup();
            Site {
                return_offset: site.ret_addr,
                known: maps.contains_key(&site.ret_addr) || !may_call_library,
                slots,
            }
        })
        .collect();
    sites.sort_unstable_by_key(|site| site.return_offset);
    let spans_agree = buffer
        .user_stack_maps()
        .iter()
        .all(|(_, span, _)| *span == frame_to_fp);
    let maps_have_sites = buffer.user_stack_maps().iter().all(|(at, _, _)| {
        sites
            .binary_search_by_key(at, |site| site.return_offset)
            .is_ok()
    });
    (spans_agree && maps_have_sites && outgoing <= frame_to_fp).then_some(Function {
        address: 0,
        size: buffer.total_size(),
        frame_to_fp,
        clobber,
        outgoing,
        sites,
    })
}

/// A compiled function that is ready to be called. It keeps its memory mapped.
#[derive(Clone, Debug)]
pub struct Code {
    /// The name under which it was declared.
    pub name: String,
    /// The facts that a walker needs.
    pub facts: Function,
    /// Its instructions as Cranelift prints them, if [`Arena::keep_listings`] was called.
    pub listing: Option<String>,
    /// The ranges marked by [`Body::mark`], as offsets from the function's start: from the first
    /// instruction with a mark to the end of the last one.
    pub marks: Vec<Range<u32>>,
    /// The points made by [`Body::point`], as offsets from the function's start. A point is lost if
    /// its block has become part of another one.
    pub points: Vec<u32>,
    /// What an exact scan of its interrupted frame needs, if [`Arena::keep_places`] was called.
    pub exact: Option<Arc<ExactFrame>>,
    memory: Arc<CodeMemory>,
}

impl Code {
    /// The address of its first instruction.
    pub fn entry(&self) -> *const u8 {
        self.facts.address as *const u8
    }

    /// The entry of the function with this name.
    pub fn entry_of(all: &[Code], name: &str) -> Result<*const u8, CodegenError> {
        let found = all.iter().find(|code| code.name == name);
        found.map(Code::entry).ok_or_else(|| CodegenError::Compile {
            function: name.to_owned(),
            why: "the function was not defined".to_owned(),
        })
    }

    /// The addresses of its instructions.
    pub fn range(&self) -> Range<usize> {
        self.facts.address..self.facts.address + self.facts.size as usize
    }

    /// Its bytes after relocation.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the arena wrote `size` bytes at `address`, made them read-only and executable,
        // and stays mapped as long as `self.memory` lives.
        unsafe {
            std::slice::from_raw_parts(self.facts.address as *const u8, self.facts.size as usize)
        }
    }

    /// Its stack maps.
    pub fn maps(&self) -> Result<StackMaps, CodegenError> {
        StackMaps::from_cranelift(std::slice::from_ref(&self.facts))
            .map_err(|e| self.refused(&e.to_string()))
    }

    /// Registers the function with a world as managed code. The registration keeps it mapped while
    /// a stack may return into it. `encoding` is the number of the references' encoding in the
    /// world's heap.
    pub fn register(&self, world: &World, encoding: u32) -> Result<CodeGuard, CodegenError> {
        let spec = CodeSpec {
            range: self.range(),
            what: CodeWhat::Managed {
                frames: FrameRule::Rbp,
                maps: self.maps()?,
                encoding,
            },
            owner: Some(Box::new(self.memory())),
        };
        // SAFETY: Cranelift made range and maps of this function, and the owner keeps it mapped.
        unsafe { world.register_code(spec) }.map_err(|e| self.refused(&e.to_string()))
    }

    /// Registers the function with a heap. `encoding` is that of the edges in its stack maps.
    pub fn register_with(
        &self,
        heap: &Heap,
        encoding: Encoding,
    ) -> Result<jit::CodeGuard, CodegenError> {
        let spec = jit::CodeSpec::new(self.range(), FrameRule::Rbp)
            .stack_maps(self.maps()?, encoding)
            .owner(self.memory());
        // SAFETY: Cranelift made range and maps of this function, and the owner keeps it mapped.
        unsafe { heap.register_code(spec) }.map_err(|e| self.refused(&e.to_string()))
    }

    fn refused(&self, why: &str) -> CodegenError {
        CodegenError::Register {
            function: self.name.clone(),
            why: why.to_owned(),
        }
    }

    /// The memory of the function, which is the owner for a code registration.
    pub fn memory(&self) -> Arc<CodeMemory> {
        Arc::clone(&self.memory)
    }
}

/// The body of a function under construction.
pub struct Body<'a, 'f> {
    /// Cranelift's builder. Blocks that are not sealed are sealed at the end.
    pub builder: FunctionBuilder<'f>,
    module: &'a mut JITModule,
    references: Vec<ir::Value>,
}

impl Body<'_, '_> {
    /// Makes a declared or imported function callable from this body.
    pub fn callee(&mut self, id: FuncId) -> FuncRef {
        self.module.declare_func_in_func(id, self.builder.func)
    }

    /// Marks the following instructions with a number; `None` ends the mark. See [`Code::marks`].
    pub fn mark(&mut self, number: Option<u32>) {
        let place = number.map_or_else(SourceLoc::default, SourceLoc::new);
        self.builder.set_srcloc(place);
    }

    /// Makes a point: a place that is no instruction, and that no access of memory crosses. See
    /// [`Code::points`].
    pub fn point(&mut self) {
        let point = self.builder.ins().sequence_point();
        self.builder
            .func
            .debug_tags
            .set(point, [ir::DebugTag::User(0)]);
    }

    /// Declares a value as a reference: it is in the stack maps of the calls that it lives across,
    /// and with [`Arena::keep_places`] in the table of places.
    pub fn reference(&mut self, value: ir::Value) {
        self.references.push(value);
    }

    /// Creates the entry block with the function's parameters, switches to it and gives the
    /// parameters.
    pub fn enter(&mut self) -> Vec<ir::Value> {
        let block = self.builder.create_block();
        self.builder.append_block_params_for_function_params(block);
        self.builder.switch_to_block(block);
        self.builder.seal_block(block);
        self.builder.block_params(block).to_vec()
    }
}

/// A function between `define` and `finish`.
struct Unfinished {
    id: FuncId,
    name: String,
    facts: Function,
    listing: Option<String>,
    marks: Vec<Range<u32>>,
    points: Vec<u32>,
    exact: Option<Arc<ExactFrame>>,
}

/// A module of machine code in one arena.
pub struct Arena {
    module: JITModule,
    context: Context,
    builder_context: FunctionBuilderContext,
    memory: Arc<CodeMemory>,
    imports: Arc<Mutex<HashMap<String, usize>>>,
    unfinished: Vec<Unfinished>,
    keeps_places: bool,
}

impl Arena {
    /// An arena of [`ARENA_BYTES`].
    pub fn new() -> Result<Arena, CodegenError> {
        Arena::with_size(ARENA_BYTES)
    }

    /// An arena of `bytes` bytes of address space.
    pub fn with_size(bytes: usize) -> Result<Arena, CodegenError> {
        Arena::for_isa(bytes, host_isa(true)?)
    }

    fn for_isa(bytes: usize, isa: OwnedTargetIsa) -> Result<Arena, CodegenError> {
        let provider = ArenaMemoryProvider::new_with_size(bytes)
            .map_err(|e| CodegenError::Arena(format!("cannot reserve {bytes} bytes: {e}")))?;
        let memory = Arc::new(CodeMemory(Mutex::new(provider)));
        let imports: HashMap<String, usize> = library_calls()
            .into_iter()
            .map(|(name, address)| (name.to_owned(), address))
            .collect();
        let imports = Arc::new(Mutex::new(imports));
        let mut builder = JITBuilder::with_isa(isa, cranelift_module::default_libcall_names());
        builder.memory_provider(Box::new(SharedProvider(Arc::clone(&memory))));
        let known = Arc::clone(&imports);
        builder.symbol_lookup_fn(Box::new(move |name| {
            let known = known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(name).map(|&address| address as *const u8)
        }));
        let module = JITModule::new(builder);
        Ok(Arena {
            context: module.make_context(),
            builder_context: FunctionBuilderContext::new(),
            module,
            memory,
            imports,
            unfinished: Vec::new(),
            keeps_places: false,
        })
    }

    /// From now on each [`Code`] has its instructions as text, for tests and for readers.
    pub fn keep_listings(&mut self) {
        self.context.set_disasm(true);
    }

    /// From now on each [`Code`] has tables of the places of its references.
    pub fn keep_places(&mut self) {
        self.keeps_places = true;
    }

    /// The target that code is generated for.
    pub fn isa(&self) -> &dyn TargetIsa {
        self.module.isa()
    }

    /// A System V signature.
    pub fn signature(&self, params: &[Type], returns: &[Type]) -> Signature {
        let mut signature = Signature::new(CallConv::SystemV);
        signature
            .params
            .extend(params.iter().copied().map(AbiParam::new));
        signature
            .returns
            .extend(returns.iter().copied().map(AbiParam::new));
        signature
    }

    /// Makes native code at `address` callable under `name`. An import is called by `movabs; call
    /// reg`.
    ///
    /// # Errors
    /// The name is bound to another address already, or Cranelift refuses the declaration.
    pub fn import(
        &mut self,
        name: &str,
        address: *const u8,
        signature: &Signature,
    ) -> Result<FuncId, CodegenError> {
        let previous = self
            .imports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned(), address as usize);
        if previous.is_some_and(|previous| previous != address as usize) {
            return Err(CodegenError::Compile {
                function: name.to_owned(),
                why: "imported before with another address".to_owned(),
            });
        }
        self.module
            .declare_function(name, Linkage::Import, signature)
            .map_err(|e| refused(name, &e))
    }

    /// Declares a function of this module, so that other functions and the function itself can call
    /// it before it is defined.
    pub fn declare(&mut self, name: &str, signature: &Signature) -> Result<FuncId, CodegenError> {
        self.module
            .declare_function(name, Linkage::Export, signature)
            .map_err(|e| refused(name, &e))
    }

    /// Compiles the body of a declared function, which can be called after the next
    /// [`finish`](Arena::finish).
    pub fn define<R>(
        &mut self,
        id: FuncId,
        body: impl FnOnce(&mut Body<'_, '_>) -> R,
    ) -> Result<R, CodegenError> {
        let declaration = self.module.declarations().get_function_decl(id);
        let name = declaration.linkage_name(id).into_owned();
        self.context.func.signature = declaration.signature.clone();
        self.context.func.name = ir::UserFuncName::User(ir::UserExternalName::new(0, id.as_u32()));
        let frontend_config = self.module.target_config();
        let mut under_way = Body {
            builder: FunctionBuilder::new(&mut self.context.func, &mut self.builder_context),
            module: &mut self.module,
            references: Vec::new(),
        };
        let result = body(&mut under_way);
        under_way.builder.seal_all_blocks();
        if self.keeps_places {
            exact::label(&mut under_way.builder, &under_way.references);
        }
        for reference in under_way.references {
            under_way.builder.declare_value_needs_stack_map(reference);
        }
        under_way.builder.finalize(frontend_config);
        if self.keeps_places {
            exact::label_reloads(&mut self.context.func);
        }
        let defined = self.module.define_function(id, &mut self.context);
        let compiled = self.context.compiled_code();
        let facts = compiled.and_then(|compiled| facts_of(compiled, &self.context.func));
        let listing = compiled.and_then(|compiled| compiled.vcode.clone());
        let marks = compiled.map(marks_of).unwrap_or_default();
        let points = compiled.map_or_else(Vec::new, |code| {
            code.buffer.debug_tags().map(|tags| tags.offset).collect()
        });
        let exact = compiled
            .zip(facts.as_ref())
            .filter(|_| self.keeps_places)
            .map(|(compiled, facts)| ExactFrame::new(compiled, facts, &marks));
        self.module.clear_context(&mut self.context);
        defined.map_err(|e| refused(&name, &e))?;
        let facts = facts.ok_or_else(|| CodegenError::Compile {
            function: name.clone(),
            why: "Cranelift gave no frame layout".to_owned(),
        })?;
        let exact = exact.transpose().map_err(|e| CodegenError::Compile {
            function: name.clone(),
            why: e.to_string(),
        })?;
        self.unfinished.push(Unfinished {
            id,
            name,
            facts,
            listing,
            marks,
            points,
            exact: exact.map(Arc::new),
        });
        Ok(result)
    }

    /// Declares and defines a function.
    pub fn function<R>(
        &mut self,
        name: &str,
        signature: &Signature,
        body: impl FnOnce(&mut Body<'_, '_>) -> R,
    ) -> Result<R, CodegenError> {
        let id = self.declare(name, signature)?;
        self.define(id, body)
    }

    /// Links all functions defined since the last call, in the order of definition, and makes them
    /// executable.
    pub fn finish(&mut self) -> Result<Vec<Code>, CodegenError> {
        self.module
            .finalize_definitions()
            .map_err(|e| CodegenError::Arena(e.to_string()))?;
        let finished = std::mem::take(&mut self.unfinished);
        Ok(finished
            .into_iter()
            .map(|function| Code {
                facts: Function {
                    address: self.module.get_finalized_function(function.id) as usize,
                    ..function.facts
                },
                name: function.name,
                listing: function.listing,
                marks: function.marks,
                points: function.points,
                exact: function.exact,
                memory: Arc::clone(&self.memory),
            })
            .collect())
    }
}

/// For each mark, the range from its first instruction to the end of its last.
fn marks_of(compiled: &CompiledCode) -> Vec<Range<u32>> {
    let mut marks: BTreeMap<u32, Range<u32>> = BTreeMap::new();
    for piece in compiled.buffer.get_srclocs_sorted() {
        if !piece.loc.is_default() && !exact::is_of_a_return(piece.loc) {
            let mark = marks
                .entry(piece.loc.bits())
                .or_insert(piece.start..piece.end);
            *mark = mark.start.min(piece.start)..mark.end.max(piece.end);
        }
    }
    marks.into_values().collect()
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("unfinished", &self.unfinished.len())
            .finish_non_exhaustive()
    }
}

fn refused(function: &str, error: &ModuleError) -> CodegenError {
    let why = match error {
        ModuleError::Allocation { err } => return CodegenError::Arena(err.to_string()),
        ModuleError::Compilation(inner) => format!("{inner:?}"),
        other => other.to_string(),
    };
    CodegenError::Compile {
        function: function.to_owned(),
        why,
    }
}

/// The functions that Cranelift calls where the host lacks an instruction (rounding before SSE4.1,
/// FMA), by their names in libm. A Rust program may lack libm's dynamic symbols, and `JITModule`
/// panics on a name that it cannot resolve.
fn library_calls() -> [(&'static str, usize); 10] {
    macro_rules! shim {
        ($name:literal, $float:ty, ($($x:ident),+), $body:expr) => {{
            extern "C" fn shim($($x: $float),+) -> $float {
                $body
            }
            ($name, shim as *const () as usize)
        }};
    }
    [
        shim!("ceil", f64, (x), x.ceil()),
        shim!("ceilf", f32, (x), x.ceil()),
        shim!("floor", f64, (x), x.floor()),
        shim!("floorf", f32, (x), x.floor()),
        shim!("trunc", f64, (x), x.trunc()),
        shim!("truncf", f32, (x), x.trunc()),
        shim!("nearbyint", f64, (x), x.round_ties_even()),
        shim!("nearbyintf", f32, (x), x.round_ties_even()),
        shim!("fma", f64, (x, y, z), x.mul_add(y, z)),
        shim!("fmaf", f32, (x, y, z), x.mul_add(y, z)),
    ]
}

/// The host's target with the settings of this file's head. Without `extensions`, it is the oldest
/// x86-64.
fn host_isa(extensions: bool) -> Result<OwnedTargetIsa, CodegenError> {
    let mut flags = settings::builder();
    for (name, value) in [
        ("opt_level", "speed"),
        ("preserve_frame_pointers", "true"),
        // Where blocks begin and jump to, which changes no byte of the code.
        ("machine_code_cfg_info", "true"),
        ("unwind_info", "true"),
        ("is_pic", "false"),
        ("use_colocated_libcalls", "false"),
        ("enable_probestack", "false"),
        // 16 bytes, as C compilers align functions.
        ("log2_min_function_alignment", "4"),
        (
            "enable_verifier",
            if cfg!(debug_assertions) {
                "true"
            } else {
                "false"
            },
        ),
    ] {
        flags
            .set(name, value)
            .map_err(|e| CodegenError::Host(format!("setting {name}={value}: {e}")))?;
    }
    cranelift_native::builder_with_options(extensions)
        .map_err(|why| CodegenError::Host(why.to_owned()))?
        .finish(settings::Flags::new(flags))
        .map_err(|e| CodegenError::Host(e.to_string()))
}

#[cfg(test)]
mod tests;
