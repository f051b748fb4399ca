//! Runs `tc_ingress` on frames as copies for the idle colour. A test run cannot give a packet a `tc_index`, so a small program of each
//! colour writes it, and goes on by a tail call.

use super::bytes::{bpf, empty_attr};
use anyhow::{Context as _, Result};
use aya_obj::generated::{bpf_cmd, bpf_map_type, bpf_prog_type};
use bg_common::{COPY_FOR, Colour};
use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// Offset of `tc_index` in `__sk_buff`.
const TC_INDEX: u64 = 44;
/// `bpf_tail_call`.
const TAIL_CALL: u64 = 12;
/// What the programs return if the tail call has failed: no action of tc.
const FAILED: u64 = 99;

/// The programs, by colour.
pub(super) struct Copies {
    marking: [OwnedFd; 2],
    /// The kernel empties the array when nobody has it open any more.
    _target: OwnedFd,
}

impl Copies {
    /// Loads the programs, which call `tc_ingress`.
    pub(super) fn new(tc_ingress: BorrowedFd<'_>) -> Result<Self> {
        let mut attr = empty_attr();
        attr.__bindgen_anon_1.map_type = bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY as u32;
        attr.__bindgen_anon_1.key_size = 4;
        attr.__bindgen_anon_1.value_size = 4;
        attr.__bindgen_anon_1.max_entries = 1;
        // SAFETY: no pointers are passed.
        let target = unsafe { opened(bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr)) }.context("an array of programs")?;
        let [blue, green] = Colour::ALL.map(|colour| marking(colour, &target));
        let marking = [blue?, green?];
        let (key, value) = (0_u32, tc_ingress.as_raw_fd());
        let mut attr = empty_attr();
        attr.__bindgen_anon_2.map_fd = target.as_raw_fd() as u32;
        attr.__bindgen_anon_2.key = &raw const key as u64;
        attr.__bindgen_anon_2.__bindgen_anon_1.value = &raw const value as u64;
        // SAFETY: key and value are of the sizes that were told above, and outlive the call.
        unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }.context("tc_ingress into the array")?;
        Ok(Self { marking, _target: target })
    }

    /// Runs `tc_ingress` on the copy of a frame. Returns what it has returned, and leaves the frame in `out`.
    pub(super) fn run(&self, colour: Colour, frame: &[u8], out: &mut Vec<u8>) -> Result<u32> {
        let mut attr = empty_attr();
        attr.test.prog_fd = self.marking[colour as usize].as_raw_fd() as u32;
        attr.test.data_in = frame.as_ptr() as u64;
        attr.test.data_size_in = frame.len() as u32;
        attr.test.data_out = out.as_mut_ptr() as u64;
        attr.test.data_size_out = out.len() as u32;
        // SAFETY: both buffers are as long as told, and outlive the call.
        unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }.context("run a copy")?;
        // SAFETY: the member that this command uses.
        let (size, returned) = unsafe { (attr.test.data_size_out, attr.test.retval) };
        out.truncate(size as usize);
        Ok(returned)
    }
}

/// The program that gives a packet the mark of a copy for `colour`.
fn marking(colour: Colour, target: &OwnedFd) -> Result<OwnedFd> {
    let instruction =
        |code: u64, registers: u64, offset: u64, number: u64| code | registers << 8 | offset << 16 | number << 32;
    let program = [
        // r2 = the mark; *(u32 *)(r1 + TC_INDEX) = r2
        instruction(0xb7, 0x02, 0, u64::from(COPY_FOR) + colour as u64),
        instruction(0x63, 0x21, TC_INDEX, 0),
        // r2 = the map, in two halves; r3 = 0; call
        instruction(0x18, 0x12, 0, target.as_raw_fd() as u64),
        0,
        instruction(0xb7, 0x03, 0, 0),
        instruction(0x85, 0, 0, TAIL_CALL),
        // return FAILED
        instruction(0xb7, 0x00, 0, FAILED),
        instruction(0x95, 0, 0, 0),
    ];
    let mut attr = empty_attr();
    attr.__bindgen_anon_3.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
    attr.__bindgen_anon_3.insns = program.as_ptr() as u64;
    attr.__bindgen_anon_3.insn_cnt = program.len() as u32;
    attr.__bindgen_anon_3.license = c"GPL".as_ptr() as u64;
    // SAFETY: the instructions and the license outlive the call.
    unsafe { opened(bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)) }.context("a program that marks copies")
}

/// # Safety
///
/// The call must have opened what it has returned.
unsafe fn opened(result: io::Result<i32>) -> io::Result<OwnedFd> {
    // SAFETY: it is open, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(result?) })
}
