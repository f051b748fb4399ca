//! Labs: small networks of namespaces on one machine, with servers and exact load generators.
//! The tests and the demo use them.
//!
//! Everything that a lab creates has a name that begins with `bg-<pid>-`. It is removed when its guard is
//! dropped, by Ctrl-C, or by the next lab if the process was killed ([`sweep`]). Outside
//! its own namespaces, a lab only changes `/run/netns`, a directory in `/sys/fs/bpf`, a directory in the
//! directory for temporary files, and, for a [`Machine`], a control group.

mod backend_health;
mod bgctl;
mod capture;
mod chance;
mod command;
pub mod config;
mod controller;
mod faulty;
pub mod frames;
mod guarded;
mod http;
mod instant;
mod live;
pub mod load;
pub mod machine;
pub mod megabyte;
mod neighbour;
mod netns;
mod new_flows;
mod nginx;
mod postgres;
mod processor;
mod raw;
mod ready;
mod sandbox;
mod schemathesis;
mod scripted;
mod server;
mod setting;
pub mod sweep;
mod tap;
mod tcp;
mod terminal;
mod topology;
mod trace;
pub mod twin;
mod worker;

pub use backend_health::BackendHealth;
pub use bgctl::Bgctl;
pub use capture::{Capture, Seen};
pub use chance::Chance;
pub use command::{Process, output, run};
pub use controller::Controller;
pub use faulty::{Fault, Faulty};
pub use guarded::guarded;
pub use http::{HttpAnswer, HttpClient, HttpEvents};
pub use instant::{Probe, SwitchInstant};
pub use live::Live;
pub use machine::Machine;
pub use neighbour::Neighbour;
pub use netns::Namespace;
pub use new_flows::{Asked, NewFlows, ask_unless_switched};
pub use nginx::Nginx;
pub use postgres::{POSTGRES, Postgres, Session};
pub use processor::Processor;
pub use raw::RawSocket;
pub use ready::Ready;
pub use sandbox::Sandbox;
pub use schemathesis::{SCHEMATHESIS, schemathesis};
pub use scripted::{Answers, Scripted};
pub use server::{HTTP_PORT, Server, UDP_PORT, boot_ns, hold_bursts, monotonic_ns, serve};
pub use setting::Setting;
pub use tap::Tap;
pub use tcp::{handshake_time, no_backend_knows, retransmissions, tcp_counter};
pub use terminal::Terminal;
pub use topology::{Backend, Fabric, Lab, Offloads, address};
pub use trace::{Hop, trace};
pub use worker::{Stop, Worker};
