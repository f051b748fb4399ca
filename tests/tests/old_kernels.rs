//! What the committed objects ask of a kernel: nothing that Linux 5.15 does not have. Whether the verifiers of old kernels accept it
//! besides, only these kernels can tell; see docs/verifier.md.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::Path,
};

use anyhow::{Context, Result};
use aya_obj::{Object, generated::bpf_insn};

/// The last helper of Linux 5.15, `bpf_task_pt_regs`. Their numbers are given in order.
const LAST_HELPER: i32 = 175;

/// `bpf_ktime_get_tai_ns`, of Linux 6.1. One place calls it, behind `TABLE_SIZES.has_tai`. Where the loader leaves that zero, the
/// verifier takes the call for dead code and removes it, without looking at it.
const GUARDED_HELPER: i32 = 208;

/// What the frames of a call chain may take together, and at most as many functions.
const STACK: u32 = 512;
const FRAMES: usize = 8;

/// Kernels before 6.8, and later ones without JIT, round each frame up to this. A function that needs no stack takes as much.
const FRAME_UNIT: u32 = 32;

const R10: u8 = 10;

/// A program with the functions that it calls, in one piece, as the kernel gets it.
struct Program {
    name: String,
    instructions: Vec<bpf_insn>,
}

/// The object with the programs that packets meet, the one that explains, the one for backends, and the one of health checks.
const OBJECTS: [&str; 4] = ["bg.bpf.o", EXPLAIN, "decap.bpf.o", "check.bpf.o"];
const EXPLAIN: &str = "explain.bpf.o";

/// The programs of all objects.
fn programs() -> Result<Vec<Program>> {
    Ok(OBJECTS.iter().map(|name| programs_of(name)).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn programs_of(object_name: &str) -> Result<Vec<Program>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bg-userspace/bpf");
    let bytes = std::fs::read(directory.join(object_name))?;
    let mut object = Object::parse(&bytes)?;
    let sections: HashSet<_> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections)?;
    let programs = object.programs.iter().map(|(name, program)| {
        let function = object.functions.get(&program.function_key()).with_context(|| format!("no code of {name}"))?;
        Ok(Program { name: format!("{object_name}: {name}"), instructions: function.instructions.clone() })
    });
    programs.collect()
}

/// Instructions without the second halves of 64-bit constants, each with its number.
fn whole(instructions: &[bpf_insn]) -> impl Iterator<Item = (usize, &bpf_insn)> {
    const LOAD_CONSTANT: u8 = 0x18;
    let is_half = |nth: usize| nth > 0 && instructions[nth - 1].code == LOAD_CONSTANT;
    instructions.iter().enumerate().filter(move |(nth, _)| !is_half(*nth))
}

/// What a call instruction calls.
enum Callee {
    Helper(i32),
    Function(usize),
    Other(u8),
}

fn callee(nth: usize, instruction: &bpf_insn) -> Option<Callee> {
    const CALL: u8 = 0x85;
    (instruction.code == CALL).then(|| match instruction.src_reg() {
        0 => Callee::Helper(instruction.imm),
        1 => Callee::Function((nth as i64 + 1 + i64::from(instruction.imm)) as usize),
        other => Callee::Other(other),
    })
}

/// A function of a program.
#[derive(Default)]
struct Function {
    stack: u32,
    calls: BTreeSet<usize>,
}

/// Functions by their first instruction, as the verifier finds them.
fn functions(instructions: &[bpf_insn]) -> BTreeMap<usize, Function> {
    let mut functions = BTreeMap::from([(0, Function::default())]);
    for (nth, instruction) in whole(instructions) {
        if let Some(Callee::Function(target)) = callee(nth, instruction) {
            functions.entry(target).or_default();
        }
    }
    // A register that holds the frame's end, until the next instruction moves it.
    let mut frame_end = None;
    for (nth, instruction) in whole(instructions) {
        let (_, function) = functions.range_mut(..=nth).next_back().expect("the program itself begins at zero");
        if let Some(Callee::Function(target)) = callee(nth, instruction) {
            function.calls.insert(target);
        }
        function.stack = function.stack.max(lowest(instruction, frame_end));
        const MOVE: u8 = 0xbf;
        frame_end = (instruction.code == MOVE && instruction.src_reg() == R10).then(|| instruction.dst_reg());
    }
    functions
}

/// How far below the frame's end an instruction reaches.
fn lowest(instruction: &bpf_insn, frame_end: Option<u8>) -> u32 {
    const ADD: u8 = 0x07;
    let offset = match instruction.code & 0x07 {
        // Loads, and stores.
        1 if instruction.src_reg() == R10 => instruction.off.into(),
        2 | 3 if instruction.dst_reg() == R10 => instruction.off.into(),
        _ if instruction.code == ADD && frame_end == Some(instruction.dst_reg()) => instruction.imm,
        _ => 0,
    };
    offset.min(0).unsigned_abs()
}

/// The stack of the deepest chain of calls from a function on, and the functions of the longest.
fn chain(functions: &BTreeMap<usize, Function>, from: usize) -> (u32, usize) {
    let function = &functions[&from];
    let below = function.calls.iter().map(|callee| chain(functions, *callee));
    let (stack, frames) = below.fold((0, 0), |most, next| (most.0.max(next.0), most.1.max(next.1)));
    (stack + function.stack.max(1).next_multiple_of(FRAME_UNIT), frames + 1)
}

#[test]
fn no_chain_of_calls_takes_more_stack_than_old_kernels_give() -> Result<()> {
    for Program { name, instructions } in programs()? {
        let (stack, frames) = chain(&functions(&instructions), 0);
        println!("{name}: {stack} bytes in {frames} frames");
        assert!(stack <= STACK, "{name}: {stack} bytes of stack, of {STACK}");
        assert!(frames <= FRAMES, "{name}: {frames} frames, of {FRAMES}");
    }
    Ok(())
}

#[test]
fn every_helper_is_in_linux_5_15() -> Result<()> {
    for Program { name, instructions } in programs()? {
        let mut guarded = 0;
        for (nth, instruction) in whole(&instructions) {
            match callee(nth, instruction) {
                Some(Callee::Helper(GUARDED_HELPER)) => guarded += 1,
                Some(Callee::Helper(helper)) => assert!(helper <= LAST_HELPER, "{name}: {nth}: helper {helper}"),
                Some(Callee::Other(kind)) => panic!("{name}: {nth}: a call of kind {kind}, such as a kfunc's"),
                Some(Callee::Function(_)) | None => {}
            }
        }
        assert!(guarded <= 1, "{name}: {guarded} calls of a helper of Linux 6.1");
    }
    Ok(())
}

/// Whether an instruction changes memory in one step with others: that of a map, or a word of the stack for the sake of order.
fn is_atomic(instruction: &bpf_insn) -> bool {
    instruction.code & 0xe7 == 0xc3
}

/// The rest, that plain stores do not reach maps either, is for tests to find that compare the maps: `differential` and `explain`.
#[test]
fn the_programs_that_explain_compare_and_exchange_nothing() -> Result<()> {
    let on_maps = |programs: Vec<Program>| -> usize {
        let all = programs.iter().flat_map(|program| &program.instructions);
        all.filter(|instruction| is_atomic(instruction) && instruction.dst_reg() != R10).count()
    };
    assert_eq!(on_maps(programs_of(EXPLAIN)?), 0);
    // The others do, so this test sees it.
    assert!(on_maps(programs_of("bg.bpf.o")?) > 20);
    Ok(())
}

/// A test run sends nothing by itself, but this helper does.
#[test]
fn the_programs_that_explain_send_nothing() -> Result<()> {
    const CLONE_REDIRECT: i32 = 13;
    let sends = |programs: Vec<Program>| {
        programs.iter().any(|program| {
            let mut calls = whole(&program.instructions).filter_map(|(nth, instruction)| callee(nth, instruction));
            calls.any(|callee| matches!(callee, Callee::Helper(CLONE_REDIRECT)))
        })
    };
    assert!(!sends(programs_of(EXPLAIN)?));
    assert!(sends(programs_of("bg.bpf.o")?));
    Ok(())
}

/// Version 4 of the instruction set came with Linux 6.6, and acquire and release with 6.15.
fn is_of_version_3(instruction: &bpf_insn) -> bool {
    let (class, operation, mode) = (instruction.code & 0x07, instruction.code & 0xf0, instruction.code & 0xe0);
    match class {
        // Loads that extend the sign.
        1 => mode != 0x80,
        // Atomics: add, or, and, xor, each with and without fetch, exchange, compare and exchange.
        3 if mode == 0xc0 => [0x00, 0x01, 0x40, 0x41, 0x50, 0x51, 0xa0, 0xa1, 0xe1, 0xf1].contains(&instruction.imm),
        // Signed division and remainder, moves that extend the sign, and unconditional swaps of bytes.
        4 | 7 => !(matches!(operation, 0x30 | 0x90 | 0xb0) && instruction.off != 0) && instruction.code != 0xd7,
        // The long jump.
        6 => operation != 0x00,
        _ => true,
    }
}

#[test]
fn every_instruction_is_in_linux_5_15() -> Result<()> {
    for Program { name, instructions } in programs()? {
        for (nth, instruction) in whole(&instructions) {
            assert!(is_of_version_3(instruction), "{name}: {nth}: code {:#04x}", instruction.code);
        }
    }
    Ok(())
}

/// Where an instruction leads, and whether each way may lead back to an instruction on the way to it.
fn ways(nth: usize, instruction: &bpf_insn) -> Vec<(usize, bool)> {
    const JUMP: u8 = 0x05;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    let target = (nth as i64 + 1 + i64::from(instruction.off)) as usize;
    match (instruction.code, instruction.code & 0x07) {
        (EXIT, _) => Vec::new(),
        (JUMP, _) => vec![(target, true)],
        (CALL, _) => vec![(nth + 1, false)],
        (_, 5 | 6) => vec![(nth + 1, true), (target, true)],
        // The second half of a 64-bit constant is an instruction that leads on.
        _ => vec![(nth + 1, false)],
    }
}

/// Instructions from which a loop goes on without a jump.
fn loops_without_jump(instructions: &[bpf_insn]) -> Vec<usize> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        OnTheWay,
        Done,
    }
    let mut states = vec![State::New; instructions.len()];
    let mut found = Vec::new();
    for start in functions(instructions).into_keys() {
        let mut way = vec![(start, ways(start, &instructions[start]))];
        states[start] = State::OnTheWay;
        while let Some((nth, rest)) = way.last_mut() {
            let nth = *nth;
            let Some((next, may_go_back)) = rest.pop() else {
                states[nth] = State::Done;
                way.pop();
                continue;
            };
            match states[next] {
                State::New => {
                    states[next] = State::OnTheWay;
                    way.push((next, ways(next, &instructions[next])));
                }
                State::OnTheWay if !may_go_back => found.push(nth),
                State::OnTheWay | State::Done => {}
            }
        }
    }
    found
}

/// Linux 6.1 and earlier refuse a loop whose last instruction is no jump: `back-edge from insn 1245 to 1246`.
#[test]
fn the_way_back_in_a_loop_is_a_jump() -> Result<()> {
    for Program { name, instructions } in programs()? {
        assert_eq!(loops_without_jump(&instructions), [], "{name}");
    }
    Ok(())
}
