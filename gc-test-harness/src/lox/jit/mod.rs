//! The JIT: machine code for hot functions and hot loops.
//!
//! [`attach`] makes an isolate request code after a number of calls of a function or of iterations
//! of its loops. A function's code takes its arguments in registers and is called by other code
//! directly. A loop's code is entered from the interpreter in the middle of an activation, and
//! takes over all slots of the activation. The same translation (`translate.rs`) makes both. It
//! specialises the code to inferred types (`analysis.rs`) and, with guards, to the present contents
//! of caches and global variables (`access.rs`, `calls.rs`). Functions that cannot be compiled are
//! interpreted.
//!
//! No loop polls. A signal stops a thread at any instruction of compiled code. The innermost frame
//! is scanned conservatively, the outer frames exactly, by the stack maps that are registered with
//! each piece of code.
//!
//! [`oracle`] checks the stack maps against the bytecode's liveness. For it, `watch.rs` makes
//! compiled code record its live references.

mod access;
mod analysis;
mod arith;
mod calls;
mod frames;
mod helpers;
pub mod oracle;
mod passing;
mod sites;
mod stubs;
mod translate;
mod translator;
mod watch;
mod windows;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::sync::Arc;

use crate::lox::fault::Fault;
use cranelift_codegen::ir::types;
use gc_core::jit::{CodeError, CodeGuard, CodeSpec, FrameRule};

use self::analysis::{Analysis, Type};
use self::helpers::Helpers;
use self::oracle::{Oracle, Shadow};
use self::sites::Sites;
use self::stubs::{FAST_FIXED, Stub, Stubs};
use self::translator::{Translator, Unit};
use super::bytecode::{Function, Op};
use super::cells::BOXED;
use super::isolate::Vm;
use super::proto::{Cache, Entry, Proto};
use super::value::Value;
use crate::kernels::codegen::{Arena, Code, CodegenError};

/// The JIT's thresholds.
#[derive(Clone, Debug)]
pub struct JitConfig {
    /// Calls of a function until it is compiled; 0: at its first call.
    pub calls: u32,
    /// Iterations of a function's loops until the present loop is compiled; 0: at the first.
    pub loops: u32,
    /// Misses of a function's inline caches until it is compiled again.
    pub misses: u32,
    /// The oracle that checks the stack maps, in tests.
    pub oracle: Option<Arc<Oracle>>,
}

/// Calls until a function is compiled. Compiling a small function takes about as long as
/// interpreting it some hundred times.
const CALLS: u32 = 200;
/// Iterations until a loop is compiled. An iteration is shorter than a call.
const LOOPS: u32 = 1000;
/// Misses until a function is compiled again. A miss costs about as much as interpreting some
/// instructions.
const MISSES: u32 = 500;

impl Default for JitConfig {
    fn default() -> JitConfig {
        JitConfig {
            calls: CALLS,
            loops: LOOPS,
            misses: MISSES,
            oracle: None,
        }
    }
}

impl JitConfig {
    /// Thresholds of `times` calls, iterations and misses; 0: code is compiled at once.
    pub fn after(times: u32) -> JitConfig {
        JitConfig {
            calls: times,
            loops: times,
            misses: times,
            oracle: None,
        }
    }
}

impl PartialEq for JitConfig {
    fn eq(&self, other: &JitConfig) -> bool {
        (self.calls, self.loops, self.misses) == (other.calls, other.loops, other.misses)
    }
}

impl Eq for JitConfig {}

/// A compiled loop, and the types of the slots that its code expects.
struct LoopCode {
    types: Vec<Type>,
    entry: Entry,
}

/// The use of a piece of code under construction.
enum Purpose {
    Stub(Stub, usize),
    Function(*mut Proto),
    Loop(*mut Proto, u32, Vec<Type>),
    /// No use: the translation contradicted its analysis.
    Discarded,
}

/// The compiler of one isolate.
pub struct Jit {
    arena: Arena,
    helpers: Helpers,
    stubs: Stubs,
    /// Addresses of the stubs.
    stub_code: HashMap<(Stub, usize), *const u8>,
    compiled: HashSet<*mut Proto>,
    loops: HashMap<(*mut Proto, u32), LoopCode>,
    sites: Sites,
    /// The first cache of each function that has caches, in ascending order.
    owners: Vec<(*mut Cache, *mut Proto)>,
    under_construction: Vec<Purpose>,
    guards: Vec<CodeGuard>,
    /// Number of inline allocations that are restart ranges.
    restart_windows: usize,
    config: JitConfig,
    shadow: Option<Arc<Shadow>>,
    /// Number of pieces of code, which makes their names distinct.
    pieces: u32,
    /// Whether each function has an entry for compiled code.
    linked: bool,
    /// Number of translations that contradicted their analyses.
    contradictions: usize,
    /// All registered code, if it is kept for readers.
    kept: Option<Vec<Code>>,
}

/// Owns an isolate's JIT. It must be dropped before the isolate, and not while the isolate runs.
pub struct Attached {
    jit: *mut Jit,
}

impl Attached {
    /// The number of functions and loops that have been compiled.
    pub fn compiled(&self) -> usize {
        // SAFETY: made by `attach`, freed by `drop`; used by this thread only.
        let jit = unsafe { &*self.jit };
        jit.compiled.len() + jit.loops.len()
    }
}

impl Attached {
    /// The number of functions and loops that are interpreted because their translation needed a
    /// value that their analysis takes for dead. Other than 0, the analysis has a fault.
    pub fn contradictions(&self) -> usize {
        // SAFETY: as in `compiled`.
        unsafe { (*self.jit).contradictions }
    }

    /// From now on the JIT keeps all code that it registers, for [`code`](Attached::code).
    pub fn keep_code(&mut self) {
        // SAFETY: as in `compiled`.
        unsafe { (*self.jit).kept = Some(Vec::new()) };
    }

    /// The code that was registered since [`keep_code`](Attached::keep_code), the oldest first.
    pub fn code(&self) -> &[Code] {
        // SAFETY: as in `compiled`. The isolate does not run, so nothing is added meanwhile.
        unsafe { (*self.jit).kept.as_deref().unwrap_or_default() }
    }

    /// Compiles the functions that were not hot. `vm` is the isolate that the JIT is attached to,
    /// and does not run. Functions that cannot be compiled are left out.
    pub fn compile_cold(&mut self, vm: &mut Vm) {
        let protos: Vec<*mut Proto> = vm.protos.iter_mut().map(|p| &raw mut **p).collect();
        // SAFETY: as in `compiled`.
        let jit = unsafe { &mut *self.jit };
        for proto in protos {
            if !jit.compiled.contains(&proto) {
                let _ = jit.compile_function(vm, proto);
            }
        }
    }

    /// The number of inline allocations that are restart ranges. All others are unsafe ranges.
    pub fn restart_windows(&self) -> usize {
        // SAFETY: as in `compiled`.
        unsafe { (*self.jit).restart_windows }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: `attach` made the pointer from a box. As the type's documentation demands, the
        // isolate does not run, so it does not call the hooks.
        let jit = unsafe { Box::from_raw(self.jit) };
        if let (Some(oracle), Some(shadow)) = (&jit.config.oracle, &jit.shadow) {
            oracle.forget(shadow);
        }
    }
}

/// Attaches a JIT to an isolate that has not run yet.
pub fn attach(vm: &mut Vm, config: JitConfig) -> Result<Attached, CodegenError> {
    let mut arena = Arena::new()?;
    let helpers = Helpers::import(&mut arena)?;
    for proto in &mut vm.protos {
        proto.calls_left = config.calls.max(1);
        proto.loops_left = config.loops.max(1);
    }
    let shadow = config.oracle.as_ref().map(|oracle| oracle.watch());
    let jit = Box::into_raw(Box::new(Jit {
        arena,
        helpers,
        stubs: Stubs::default(),
        stub_code: HashMap::new(),
        compiled: HashSet::new(),
        loops: HashMap::new(),
        sites: Sites::default(),
        owners: Vec::new(),
        under_construction: Vec::new(),
        guards: Vec::new(),
        restart_windows: 0,
        config,
        shadow,
        pieces: 0,
        linked: false,
        contradictions: 0,
        kept: None,
    }));
    vm.hooks.hot_call = Some(hot_call);
    vm.hooks.hot_loop = Some(hot_loop);
    vm.hooks.missed = Some(missed);
    vm.hooks.data = jit.cast();
    Ok(Attached { jit })
}

/// [`Hooks::hot_call`](crate::lox::isolate::Hooks::hot_call).
unsafe extern "C" fn hot_call(vm: *mut Vm, proto: *mut Proto, _: *mut Value) {
    // SAFETY: the interpreter's promise; `attach` set the data. The isolate waits for this call to
    // return.
    let jit = unsafe { &mut *(*vm).hooks.data.cast::<Jit>() };
    // A function that cannot be compiled stays interpreted.
    let _ = jit.compile_function(vm, proto);
}

/// [`Hooks::hot_loop`](crate::lox::isolate::Hooks::hot_loop).
unsafe extern "C" fn hot_loop(
    vm: *mut Vm,
    proto: *mut Proto,
    target: u32,
    base: *mut Value,
) -> Option<Entry> {
    // SAFETY: as above.
    let jit = unsafe { &mut *(*vm).hooks.data.cast::<Jit>() };
    jit.compile_loop(vm, proto, target, base).ok().flatten()
}

/// [`Hooks::missed`](crate::lox::isolate::Hooks::missed).
unsafe extern "C" fn missed(vm: *mut Vm, place: *mut Cache) {
    // SAFETY: as above; compiled code does not run inside of the compiler.
    let jit = unsafe { &mut *(*vm).hooks.data.cast::<Jit>() };
    let patience = jit.config.misses.max(1);
    let proto = jit.owner_of(place);
    if jit.sites.note(proto, place, patience) {
        // If this fails, the present code stays in use.
        let _ = jit.compile_again(vm, proto);
    }
}

/// The type of a value in the analysis.
fn type_of(value: Value) -> Type {
    match value {
        value if value.is_number() => Type::NUMBER,
        Value::TRUE | Value::FALSE => Type::BOOLEAN,
        Value::NIL => Type::NIL,
        _ => Type::ANY,
    }
}

/// The largest [`analysis::weight`] plus code length of a function that is compiled. Beyond it,
/// Cranelift takes longer than the machine code saves.
const WEIGHT_MAX: usize = 12_000;

fn within_limit(function: &Function, analysis: &Analysis) -> Result<(), CodegenError> {
    if analysis::weight(analysis) + function.code.len() <= WEIGHT_MAX {
        return Ok(());
    }
    Err(not_compiled(function, "too large"))
}

fn not_compiled(function: &Function, why: &str) -> CodegenError {
    CodegenError::Compile {
        function: String::from_utf8_lossy(function.name.as_deref().unwrap_or(b"script")).into(),
        why: why.to_owned(),
    }
}

impl Jit {
    fn compile_function(&mut self, vm: *mut Vm, proto: *mut Proto) -> Result<(), CodegenError> {
        // SAFETY: functions live as long as the isolate, and the clone keeps the immutable part
        // alive.
        let function = unsafe { Arc::clone(&(*proto).function) };
        let count = function.arity as usize;
        let enter = if function.is_method {
            Stub::EnterMethod
        } else {
            Stub::Enter
        };
        self.make_stub(enter, count)?;
        self.link(vm)?;
        self.make_call_stubs(&function)?;
        let region = 0..function.code.len();
        let types = analysis::parameter_types(&function);
        let analysis = Analysis::new(&function, 0, &region, types);
        within_limit(&function, &analysis)?;
        let passed = count + usize::from(function.is_method);
        let signature = self
            .arena
            .signature(&passing::params(FAST_FIXED, passed), &[types::I64]);
        let name = self.name(&function, None);
        let id = self.arena.declare(&name, &signature)?;
        self.pieces += 1;
        let first = self.compiled.insert(proto);
        let unit = Unit {
            vm,
            proto,
            function: &function,
            analysis,
            start: 0,
            region,
            osr: false,
            helpers: &self.helpers,
            stubs: &self.stubs,
            compiled: &self.compiled,
            sites: &self.sites,
            shadow: self.shadow.as_deref(),
            contradicted: Cell::new(false),
        };
        let defined = self.arena.define(id, |body| Translator::run(&unit, body));
        let contradicted = unit.contradicted.get();
        let finished = defined
            .and_then(|()| self.conclude(vm, &function, contradicted, Purpose::Function(proto)));
        if finished.is_err() && first && !Fault::KeepRefused.planted() {
            // Other functions must not take it for compiled: they would call it without a closure.
            self.compiled.remove(&proto);
        }
        finished
    }

    fn compile_loop(
        &mut self,
        vm: *mut Vm,
        proto: *mut Proto,
        target: u32,
        base: *mut Value,
    ) -> Result<Option<Entry>, CodegenError> {
        // SAFETY: as in `compile_function`.
        let function = unsafe { Arc::clone(&(*proto).function) };
        // SAFETY: as above. Another loop of the function may get hot as well.
        unsafe { (*proto).loops_left = self.config.loops.max(1) };
        let Some(depth) = analysis::depth_at(&function, target as usize) else {
            return Ok(None);
        };
        let mut types: Vec<Type> = (0..depth as usize)
            .map(|slot| match slot {
                _ if function.is_captured(slot) => Type::ANY,
                0 if function.is_method => Type::INSTANCE,
                // SAFETY: the activation's slots begin at `base`.
                _ => type_of(unsafe { *base.add(slot) }),
            })
            .collect();
        if let Some(known) = self.loops.get(&(proto, target)) {
            if types
                .iter()
                .zip(&known.types)
                .all(|(now, known)| now.is(*known))
            {
                return Ok(Some(known.entry));
            }
            for (now, known) in types.iter_mut().zip(&known.types) {
                if !now.is(*known) {
                    *now = Type::ANY;
                }
            }
        }
        self.link(vm)?;
        self.make_call_stubs(&function)?;
        let region = analysis::loop_nest(&function, target as usize);
        let analysis = Analysis::new(&function, target as usize, &region, types.clone());
        within_limit(&function, &analysis)?;
        let signature = self.arena.signature(&[types::I64; 3], &[types::I64]);
        let name = self.name(&function, Some(target));
        let id = self.arena.declare(&name, &signature)?;
        self.pieces += 1;
        let unit = Unit {
            vm,
            proto,
            function: &function,
            analysis,
            start: target as usize,
            region,
            osr: true,
            helpers: &self.helpers,
            stubs: &self.stubs,
            compiled: &self.compiled,
            sites: &self.sites,
            shadow: self.shadow.as_deref(),
            contradicted: Cell::new(false),
        };
        self.arena.define(id, |body| Translator::run(&unit, body))?;
        let contradicted = unit.contradicted.get();
        self.conclude(
            vm,
            &function,
            contradicted,
            Purpose::Loop(proto, target, types),
        )?;
        Ok(self.loops.get(&(proto, target)).map(|code| code.entry))
    }

    /// Records the use of the code that was just defined, unless its translation contradicted its
    /// analysis.
    fn conclude(
        &mut self,
        vm: *mut Vm,
        function: &Function,
        contradicted: bool,
        purpose: Purpose,
    ) -> Result<(), CodegenError> {
        self.under_construction.push(if contradicted {
            Purpose::Discarded
        } else {
            purpose
        });
        self.finish(vm)?;
        if contradicted {
            self.contradictions += 1;
            return Err(not_compiled(
                function,
                "a value is used that counts as dead",
            ));
        }
        Ok(())
    }

    /// Compiles a function again with the shapes that its accesses have seen since. Its loops are
    /// compiled again when they are entered.
    fn compile_again(&mut self, vm: *mut Vm, proto: *mut Proto) -> Result<(), CodegenError> {
        self.loops.retain(|&(other, _), _| other != proto);
        if self.compiled.contains(&proto) {
            self.compile_function(vm, proto)?;
        }
        Ok(())
    }

    /// The function to which an inline cache belongs.
    fn owner_of(&self, cache: *mut Cache) -> *mut Proto {
        let next = self.owners.partition_point(|&(first, _)| first <= cache);
        self.owners[next - 1].1
    }

    fn name(&self, function: &Function, target: Option<u32>) -> String {
        let name = match &function.name {
            None => "script".into(),
            Some(name) => String::from_utf8_lossy(name),
        };
        let place = target.map_or(String::new(), |at| format!(" loop at {at}"));
        format!("lox {name}{place} #{}", self.pieces)
    }

    fn make_stub(&mut self, stub: Stub, count: usize) -> Result<(), CodegenError> {
        if self.stubs.get(stub, count).is_none() {
            self.stubs
                .make(&mut self.arena, &self.helpers, stub, count)?;
            self.under_construction.push(Purpose::Stub(stub, count));
        }
        Ok(())
    }

    fn make_call_stubs(&mut self, function: &Function) -> Result<(), CodegenError> {
        for instruction in &function.code {
            let count = usize::from(instruction.a);
            match instruction.op {
                Op::Call => self.make_stub(Stub::Call, count)?,
                Op::Invoke => {
                    self.make_stub(Stub::Invoke, count)?;
                    self.make_stub(Stub::Call, count)?;
                }
                Op::SuperInvoke => self.make_stub(Stub::SuperInvoke, count)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Gives every function an entry with arguments in registers. Until the function is compiled,
    /// this entry calls the interpreter.
    fn link(&mut self, vm: *mut Vm) -> Result<(), CodegenError> {
        if self.linked {
            return Ok(());
        }
        // SAFETY: the isolate waits; its functions live as long as it.
        let protos: Vec<*mut Proto> = unsafe {
            (*vm)
                .protos
                .iter_mut()
                .map(|proto| &raw mut **proto)
                .collect()
        };
        let stub_of = |proto: *mut Proto| {
            // SAFETY: as above.
            let function = unsafe { &(*proto).function };
            let stub = if function.is_method {
                Stub::InterpretMethod
            } else {
                Stub::Interpret
            };
            (stub, function.arity as usize)
        };
        for &proto in &protos {
            let (stub, count) = stub_of(proto);
            self.make_stub(stub, count)?;
        }
        self.finish(vm)?;
        for &proto in &protos {
            if let Some(&code) = self.stub_code.get(&stub_of(proto)) {
                // SAFETY: as above.
                unsafe { (*proto).fast_entry = code };
            }
        }
        for &proto in &protos {
            // SAFETY: as above.
            let known = unsafe { &*proto };
            if known.function.caches > 0 {
                self.owners.push((known.caches, proto));
            }
        }
        self.owners.sort_unstable();
        self.linked = true;
        Ok(())
    }

    /// Makes the defined code executable, registers it with the heap, and installs it in the
    /// isolate.
    fn finish(&mut self, vm: *mut Vm) -> Result<(), CodegenError> {
        let codes = self.arena.finish()?;
        let purposes = std::mem::take(&mut self.under_construction);
        for (code, purpose) in codes.into_iter().zip(purposes) {
            self.register(vm, &code)?;
            match purpose {
                Purpose::Discarded => {}
                Purpose::Stub(stub, count) => {
                    self.stub_code.insert((stub, count), code.entry());
                }
                Purpose::Function(proto) => {
                    // SAFETY: functions live as long as the isolate, the code as long as `self`.
                    // The stub has the signature of an `Entry`.
                    unsafe {
                        (*proto).fast_entry = code.entry();
                        let function = &(*proto).function;
                        let enter = if function.is_method {
                            Stub::EnterMethod
                        } else {
                            Stub::Enter
                        };
                        let key = (enter, function.arity as usize);
                        if let Some(&stub) = self.stub_code.get(&key) {
                            (*proto).entry = std::mem::transmute::<*const u8, Entry>(stub);
                        }
                    }
                }
                Purpose::Loop(proto, target, types) => {
                    // SAFETY: compiled with the signature of an `Entry`.
                    let entry = unsafe { std::mem::transmute::<*const u8, Entry>(code.entry()) };
                    self.loops
                        .insert((proto, target), LoopCode { types, entry });
                }
            }
        }
        Ok(())
    }

    fn register(&mut self, vm: *mut Vm, code: &Code) -> Result<(), CodegenError> {
        let refused = |error: CodeError| CodegenError::Register {
            function: code.name.clone(),
            why: error.to_string(),
        };
        if Fault::RefuseCode.planted() && code.name.contains("refused") {
            return Err(refused(gc_preempt::CodeError::Empty { range: 0..0 }.into()));
        }
        let maps = code.maps()?;
        let bytes = code.bytes();
        // SAFETY: the isolate waits.
        let heap = unsafe { &(*vm).lox.heap };
        let mut spec = CodeSpec::new(code.range(), FrameRule::Rbp)
            .stack_maps(maps, BOXED)
            .owner(code.memory());
        for window in &code.marks {
            let inside = &bytes[window.start as usize..window.end as usize];
            let range = windows::addresses(code.range(), window);
            if windows::can_restart(inside) {
                self.restart_windows += 1;
                spec = spec.restart_range(range);
            } else if inside.len() <= windows::WINDOW_MAX {
                spec = spec.unsafe_range(range);
            } else {
                return Err(CodegenError::Compile {
                    function: code.name.clone(),
                    why: "the instructions of an inline allocation are not adjacent".to_owned(),
                });
            }
        }
        // SAFETY: Cranelift made the range and the maps for this function, and the owner keeps the
        // code mapped. `can_restart` has checked the restart ranges. An unsafe range is a few
        // instructions that do not wait.
        let guard = unsafe { heap.register_code(spec) }.map_err(refused)?;
        self.guards.push(guard);
        let points = code
            .points
            .iter()
            .map(|&at| code.range().start + at as usize);
        // SAFETY: the isolate waits.
        unsafe { (*vm).points.add(code.range(), points.collect()) };
        if let Some(kept) = &mut self.kept {
            kept.push(code.clone());
        }
        if std::env::var_os("GCLAB_PERF_MAP").is_some() {
            write_perf_map(code);
        }
        Ok(())
    }
}

/// Writes the code's name into the map file of `perf`.
fn write_perf_map(code: &Code) {
    let path = format!("/tmp/perf-{}.map", std::process::id());
    if let Ok(mut file) = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
    {
        let range = code.range();
        // An error is ignored: it only costs a name in a profile.
        let _ = writeln!(file, "{:x} {:x} {}", range.start, range.len(), code.name);
    }
}

#[cfg(test)]
mod tests;
