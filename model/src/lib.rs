//! The protocol by which a live word changes, as a model whose states are all visited: packets on some CPUs, commands that may be killed
//! at any step, and time.
//!
//! - `run`: programs, step by step.
//! - `memory`, `watch`: what they share. `fault`: what must not happen.
//! - `packet`: packets, which run the engine's own [`bg_ebpf::policy::timed::settle`] by `generations`, and [`bg_ebpf::policy::trips::holding`] by `trips`.
//! - `process`: the commands, as user space makes them: `reading`, `claim`, `store`, `confirm`, `freeze`.
//! - `mutation`: faults of the protocol that the model must find.
//! - `forget`: what makes no difference any more.
//! - `protocol`: states, actions and properties, for stateright.
//!
//! Memory is in order here: what weak machines may do is checked under loom, in `tests/tests/flow_table`. A row is written by one step. A
//! packet takes one unit of time at most.

mod claim;
mod command;
mod confirm;
mod fault;
mod forget;
mod freeze;
mod generations;
mod memory;
mod mutation;
mod packet;
mod process;
mod protocol;
mod reading;
mod run;
mod store;
mod trips;
mod watch;

pub use command::{Command, Switch};
pub use fault::Fault;
pub use mutation::Mutation;
pub use protocol::Protocol;
