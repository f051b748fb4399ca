//! The protocol by which a live word changes, as a model whose states are all visited: packets on some CPUs, commands that may be killed
//! at any step, and time.
//!
//! - `run`: programs, step by step.
//! - `memory`: what they share, and what must not happen.
//! - `packet`: packets, which run the engine's own [`bg_ebpf::policy::timed::settle`].
//! - `command`: the commands, as user space makes them.
//! - `mutation`: faults that the model must find.
//! - `protocol`: states, actions and properties, for stateright.
//!
//! Memory is in order here: what weak machines may do is checked under loom, in `tests/tests/flow_table`. A row is written by one step. A
//! packet takes one unit of time at most.

mod command;
mod memory;
mod mutation;
mod packet;
mod protocol;
mod run;

pub use command::{Command, Switch};
pub use memory::Fault;
pub use mutation::Mutation;
pub use protocol::Protocol;
