//! Blue-green switching on the network interface, as a library for other programs.
//!
//! An *instance* is a set of BPF programs and maps that are pinned in a BPF file system. [`attach`] creates an instance
//! and attaches its programs to interfaces. From then on no process has to keep running.
//!
//! An open [`Instance`] reads and changes it: [`plan`](Instance::plan) and [`apply`](Instance::apply) a configuration,
//! [`switch`](Instance::switch) a deployment to its other colour, [`rollback`](Instance::rollback), say beforehand what a switch
//! would do ([`dry_run`](Instance::dry_run)), read the
//! [`status`](Instance::status), the [`flows`](Instance::flows) and the [`configuration`](Instance::configuration). `bgctl` is
//! a thin shell over these functions.
//!
//! ```no_run
//! use bg_userspace::{AttachOptions, Instance, Paths, SwitchRequest, attach, config};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let paths = Paths::default();
//! attach(&paths, &["eth0".to_owned()], &AttachOptions::default())?;
//!
//! let instance = Instance::open(&paths)?;
//! let file = "/etc/bgctl/bgctl.toml".as_ref();
//! for change in instance.apply(&config::load(file)?)?.changes {
//!     println!("{change}");
//! }
//! let switched = instance.switch("shop", &SwitchRequest::default())?;
//! println!("{} is live, no new flow went to the other colour after {:?}", switched.to.live.name(), switched.fence);
//! # Ok(())
//! # }
//! ```
//!
//! A configuration can also be built in code. See [`config::Config`] and the example `load_balancer`,
//! which checks the health of its backends and switches when the live colour fails.
//!
//! Every error says what was expected, what was found and what to do. [`Error::class`] distinguishes a precondition that does not hold
//! from a failure. Calls that change something lock the instance's pins. If such a call is killed, calling it again completes it.

mod apply;
mod attach;
mod condition;
pub mod config;
mod decap;
mod decap_status;
pub mod doctor;
mod drain;
mod draining;
#[cfg(feature = "serve")]
pub mod drill;
mod dry_run;
mod ending;
mod error;
mod explain;
mod fates;
mod fence;
mod flow_table;
mod flows;
mod freeze;
#[cfg(feature = "serve")]
pub mod gates;
mod health;
pub mod history;
mod hold;
#[cfg(feature = "serve")]
mod http_client;
mod index;
mod instance;
mod interface_list;
mod json;
mod kept;
mod kept_gates;
mod kept_listeners;
mod live;
mod loader;
mod lock;
pub mod maglev;
mod map_specs;
mod maps;
mod memory;
pub mod net;
mod paths;
mod pins;
mod plan;
mod probe;
#[cfg(feature = "serve")]
mod runner;
mod running;
#[cfg(feature = "serve")]
pub mod serve;
mod show;
mod sizes;
mod state;
mod status;
mod switch;
mod sys;
#[cfg(feature = "serve")]
mod teed;
pub mod text;
mod time;
mod tunnels;

pub use apply::ApplyRequest;
pub use attach::{
    AttachMode, AttachOptions, Attached, AttachedInterface, AttachedMode, Detached, InterfaceState, OtherProgram,
    PATIENCE, Target, attach, attach_in_modes, detach, detach_within,
};
pub use bg_common::{Colour, MAX_BACKENDS, MAX_SERVICES, Mode, Protocol};
pub use condition::{Condition, Share};
pub use decap::{DecapMode, DecapRequest, Decapsulating, decap_attach, decap_detach};
pub use decap_status::{DecapStatus, decap_status};
pub use draining::{DrainRequest, Drained, FlowsLeft};
pub use dry_run::{DryRun, InFlight, ServiceFates, TableUse, TablesUse, TargetBackend, WindowOutlook, Would};
pub use error::{Error, ErrorClass, Refusal, Room};
pub use explain::{AtHook, ExplainRequest, Explained, Explanation, Packet, TcpFlags};
pub use fates::Fates;
pub use flows::{FlowFilter, FlowStatus};
pub use freeze::{DEFAULT_FREEZE, FreezeRequest, Frozen, Thawed};
pub use health::{BackendHealth, Health, HealthSet};
pub use instance::Instance;
pub use interface_list::{InterfaceList, InterfaceListError, Selected};
pub use kept_listeners::needs_network_at_boot;
pub use paths::Paths;
pub use plan::{Action, Because, Beginning, Change, ColourChange, Plan, Slot};
pub use sizes::{DEFAULT_BACKENDS, DEFAULT_FLOWS, DEFAULT_SERVICES};
pub use status::{BackendStatus, ByColour, ColourStatus, DeploymentStatus, PendingStatus, ServiceStatus, Status};
pub use switch::{ConfirmRequest, FreezeWindow, SplitRequest, SwitchRequest, Switched, WindowSwitched};
