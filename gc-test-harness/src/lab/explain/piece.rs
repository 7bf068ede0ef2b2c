//! One function's instructions with their explanations, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use gc_preempt::{Explanation, FrameEnd, FrameReport, StopAt, StopError, explain};
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Formatter, Instruction, IntelFormatter, SymbolResolver,
    SymbolResult,
};
use serde_json::{Value, json};

use crate::kernels::exact::ExactFrame;
use crate::kernels::places::{Place, Places};

/// A function's machine code.
#[derive(Debug)]
pub struct Piece {
    /// Its name.
    pub name: String,
    /// The address of its first instruction.
    pub address: usize,
    /// Its length in bytes.
    pub size: usize,
    /// Its instructions, in the order of their addresses.
    pub lines: Vec<Line>,
    /// The bytes that no instruction reaches: constants and padding.
    pub data: Vec<Data>,
}

/// One instruction.
#[derive(Debug)]
pub struct Line {
    /// Bytes from the function's start.
    pub offset: usize,
    /// The instruction's bytes.
    pub bytes: Vec<u8>,
    /// The instruction in Intel's syntax.
    pub text: String,
    /// What a stop at it does.
    pub stop: Explanation,
    /// If it is a call: what a stop that meets the callee scans of this frame.
    pub call: Option<Call>,
    /// The places of references by the map of the instruction, if the compiler kept them.
    pub places: Option<Places>,
    /// Whether single steps end there.
    pub point: bool,
}

/// The frame of a function while a call in it has not returned. `None`: the function is not
/// managed, and its unwind table says where its frame ends.
pub type Call = Option<FrameReport>;

/// Bytes that are no instructions, from the function's start.
pub type Data = Range<usize>;

/// Names addresses: jumps' targets by their offset, others by their function's name.
struct Names {
    function: Range<u64>,
    known: BTreeMap<u64, String>,
}

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        _operand: u32,
        _instruction_operand: Option<u32>,
        address: u64,
        _address_size: u32,
    ) -> Option<SymbolResult<'_>> {
        let is_jump = matches!(
            instruction.flow_control(),
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
        );
        if is_jump && self.function.contains(&address) {
            let offset = format!("{:04x}", address - self.function.start);
            return Some(SymbolResult::with_string(address, offset));
        }
        let name = self.known.get(&address)?;
        Some(SymbolResult::with_str(address, name))
    }
}

impl Piece {
    /// Decodes and explains a function that lies at `address`. Instructions are those that control
    /// flow reaches from the function's start and from `entries`, in bytes from the start. `known`
    /// has the names of other functions by their addresses.
    ///
    /// # Errors
    /// The calling thread holds a stop.
    pub fn new(
        name: &str,
        address: usize,
        bytes: &[u8],
        entries: &[u32],
        known: &BTreeMap<u64, String>,
    ) -> Result<Piece, StopError> {
        let start = address as u64;
        let names = Names {
            function: start..start + bytes.len() as u64,
            known: known.clone(),
        };
        let mut formatter = IntelFormatter::with_options(Some(Box::new(names)), None);
        let options = formatter.options_mut();
        options.set_hex_prefix("0x");
        options.set_hex_suffix("");
        options.set_uppercase_hex(false);
        options.set_signed_immediate_operands(true);
        options.set_small_hex_numbers_in_decimal(true);
        let mut lines = Vec::new();
        let mut data: Vec<Data> = Vec::new();
        let mut end = 0;
        for (offset, instruction) in reached(address, bytes, entries) {
            if offset > end {
                data.push(end..offset);
            }
            end = offset + instruction.len();
            let mut text = String::new();
            formatter.format(&instruction, &mut text);
            let is_call = matches!(
                instruction.flow_control(),
                FlowControl::Call | FlowControl::IndirectCall
            );
            lines.push(Line {
                offset,
                bytes: bytes[offset..end].to_vec(),
                text,
                stop: explain(address + offset)?,
                call: match is_call {
                    true => Some(explain(address + end)?.calling),
                    false => None,
                },
                places: None,
                point: false,
            });
        }
        if end < bytes.len() {
            data.push(end..bytes.len());
        }
        Ok(Piece {
            name: name.to_owned(),
            address,
            size: bytes.len(),
            lines,
            data,
        })
    }

    /// Adds the places of references that the compiler kept.
    pub fn with_places(mut self, exact: &ExactFrame) -> Piece {
        for line in &mut self.lines {
            let offset = line.offset as u32;
            line.places = Some(exact.instructions.at(offset));
            line.point = exact.points.exactly_at(offset).is_some();
        }
        self
    }

    /// The object that `--json` prints of the function. Places are in bytes from SP.
    pub fn json(&self) -> Value {
        let lines = self.lines.iter().map(|line| {
            let mut object = json!({
                "offset": line.offset,
                "bytes": hex(&line.bytes, ""),
                "text": line.text,
                "stop": class(&line.stop.stop),
                "scans": line.stop.innermost.as_ref().map(report_json),
            });
            if let StopAt::Restart { start } = line.stop.stop {
                object["continues_at"] = (start.cast_signed() - self.address.cast_signed()).into();
            }
            if let Some(places) = line.places {
                object["map"] = places.iter().map(place_name).collect();
                object["point"] = line.point.into();
            }
            if let Some(call) = &line.call {
                object["call_scans"] = call.as_ref().map(report_json).into();
            }
            object
        });
        let data = self.data.iter();
        json!({
            "function": self.name,
            "address": self.address,
            "bytes": self.size,
            "instructions": lines.collect::<Vec<_>>(),
            "data": data.map(|d| json!([d.start, d.end])).collect::<Vec<_>>(),
        })
    }
}

/// The instructions that control flow reaches, by their offsets.
fn reached(address: usize, bytes: &[u8], entries: &[u32]) -> BTreeMap<usize, Instruction> {
    let mut found = BTreeMap::new();
    let mut open: Vec<usize> = entries.iter().map(|&entry| entry as usize).collect();
    open.push(0);
    while let Some(offset) = open.pop() {
        if offset >= bytes.len() || found.contains_key(&offset) {
            continue;
        }
        let ip = (address + offset) as u64;
        let mut decoder = Decoder::with_ip(64, &bytes[offset..], ip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            continue;
        }
        let target = instruction
            .near_branch_target()
            .wrapping_sub(address as u64) as usize;
        let flow = instruction.flow_control();
        let next = offset + instruction.len();
        found.insert(offset, instruction);
        match flow {
            FlowControl::UnconditionalBranch => open.push(target),
            FlowControl::ConditionalBranch => open.extend([target, next]),
            FlowControl::Return | FlowControl::IndirectBranch | FlowControl::Exception => {}
            _ => open.push(next),
        }
    }
    found
}

fn hex(bytes: &[u8], between: &str) -> String {
    let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(between)
}

fn class(stop: &StopAt) -> &'static str {
    match stop {
        StopAt::Native | StopAt::Managed => "safe",
        StopAt::Restart { .. } => "restartable",
        StopAt::Unsafe => "unsafe",
        _ => "unknown",
    }
}

/// A place of a map.
fn place_name(place: Place) -> String {
    /// By DWARF's numbers.
    const NAMES: [&str; 8] = ["rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp"];
    match place {
        Place::Register(number) => match NAMES.get(number as usize) {
            Some(name) => (*name).to_owned(),
            None => format!("r{number}"),
        },
        Place::BelowCfa(bytes) => format!("[CFA-{bytes}]"),
    }
}

/// A place in bytes from a register.
fn place(register: &str, offset: isize) -> String {
    match offset {
        0 => register.to_owned(),
        _ => format!("{register}{offset:+}"),
    }
}

/// The CFA.
fn end_of(report: &FrameReport) -> String {
    match report.end {
        FrameEnd::Sp(offset) => place("SP", offset),
        FrameEnd::Fp(offset) => place("RBP", offset),
        FrameEnd::StackBase => "the stack's base".to_owned(),
    }
}

fn report_json(report: &FrameReport) -> Value {
    let words = report.words.iter().map(|words| {
        let is_known = report.length.is_some_and(|length| words.end <= length);
        json!([words.start, is_known.then_some(words.end)])
    });
    json!({
        "end": end_of(report),
        "by_map": report.by_map,
        "frame_bytes": report.length,
        "word_by_word": words.collect::<Vec<_>>(),
        "exact": report.exact,
        "derived": report.derived,
    })
}

/// What a stop scans of the innermost frame.
struct Innermost<'a>(&'a FrameReport);

impl fmt::Display for Innermost<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.0.words.first().map_or(0, |words| words.start);
        write!(f, "[{}, {})", place("SP", first), end_of(self.0))
    }
}

/// What a stop scans of a frame whose call has not returned.
struct Calling<'a>(&'a FrameReport);

impl fmt::Display for Calling<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Calling(report) = self;
        let span = |from: isize, to: isize| format!("[{}, {})", place("SP", from), place("SP", to));
        if !report.by_map {
            let end = end_of(report);
            return write!(f, "word by word [SP, {end}): no map knows this call");
        }
        let slots = report
            .exact
            .iter()
            .map(|at| format!("[{}]", place("SP", *at)));
        let derived = report.derived.iter().map(|(base, derived)| {
            let (base, derived) = (place("SP", *base), place("SP", *derived));
            format!("[{base}] with [{derived}] computed from it")
        });
        let slots: Vec<String> = slots.chain(derived).collect();
        match slots.is_empty() {
            true => f.write_str("exact: no slot")?,
            false => write!(f, "exact: {}", slots.join(" "))?,
        }
        // The saved registers end at the return address.
        let saved = report.length.map(|length| length - 8);
        for words in &report.words {
            let what = match saved == Some(words.end) {
                true => "saved registers",
                false => "arguments",
            };
            write!(f, "; {what} {}", span(words.start, words.end))?;
        }
        Ok(())
    }
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = self.lines.iter().filter(|line| line.call.is_some()).count();
        writeln!(
            f,
            "{}: {} bytes at {:#x}, {} instructions, {calls} of them calls",
            self.name,
            self.size,
            self.address,
            self.lines.len(),
        )?;
        writeln!(
            f,
            "{:>6}  {:<30} {:<44} {:<12} innermost frame",
            "offset", "bytes", "instruction", "a stop here"
        )?;
        let mut data = self.data.iter().peekable();
        for line in &self.lines {
            if let Some(data) = data.next_if(|data| data.start < line.offset) {
                data_line(f, data)?;
            }
            let scans = line.stop.innermost.as_ref().map(Innermost);
            let mut scans = scans.map_or_else(|| "-".to_owned(), |scans| scans.to_string());
            if let StopAt::Restart { start } = line.stop.stop {
                scans = format!("{scans}, continues at {:04x}", start - self.address);
            }
            if let Some(places) = line.places {
                let names: Vec<String> = places.iter().map(place_name).collect();
                scans += match line.point {
                    true => "  point, map: ",
                    false => "  map: ",
                };
                scans += &match names.is_empty() {
                    true => "none".to_owned(),
                    false => names.join(" "),
                };
            }
            writeln!(
                f,
                "{:>6}  {:<30} {:<44} {:<12} {scans}",
                format!("{:04x}", line.offset),
                hex(&line.bytes, " "),
                line.text,
                class(&line.stop.stop),
            )?;
            match &line.call {
                Some(Some(report)) => writeln!(f, "{:>6}  {}", "|", Calling(report))?,
                Some(None) => writeln!(
                    f,
                    "{:>6}  word by word, to the CFA of its unwind table",
                    "|"
                )?,
                None => {}
            }
        }
        data.try_for_each(|data| data_line(f, data))
    }
}

fn data_line(f: &mut fmt::Formatter<'_>, data: &Data) -> fmt::Result {
    writeln!(
        f,
        "{:>6}  {} bytes that no instruction reaches: constants or padding",
        format!("{:04x}", data.start),
        data.len()
    )
}
