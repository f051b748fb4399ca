//! The grammar of the command line. What a command does is in [`crate::cmd`].

mod change;
mod parse;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use bg_userspace::{MAX_BACKENDS, MAX_SERVICES, Paths, Protocol, TcpFlags, config::Prefix};
use clap::{Args as ClapArgs, ColorChoice, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::ArgValueCandidates;

#[cfg(feature = "serve")]
pub(crate) use self::change::Drill;
pub(crate) use self::change::{Change, Confirm, Drain, Freeze, Rollback, Split, Switch, Thaw, Then};
use self::{
    change::ColourName,
    parse::{MAX_FLOWS, count, moment},
};
use crate::complete;

/// The configuration that is used unless another one is named.
pub(crate) const USUAL_CONFIG: &str = "/etc/bgctl/bgctl.toml";

/// Switch network traffic between a blue and a green environment
#[derive(Debug, Parser)]
#[command(name = "bgctl", version, max_term_width = 100)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The options of every command.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Directory of the instance's pins, on a BPF file system
    #[arg(long, global = true, value_name = "DIR", env = "BGCTL_PIN_ROOT", default_value = Paths::PIN_ROOT)]
    pub(crate) pin_root: PathBuf,
    /// Directory of the history and the last live colours
    #[arg(long, global = true, value_name = "DIR", env = "BGCTL_STATE_DIR", default_value = Paths::STATE_DIR)]
    pub(crate) state_dir: PathBuf,
    /// Colour the result
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = ColorChoice::Auto)]
    pub(crate) color: ColorChoice,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print more: steps and timings on stderr, and all counters in `status`
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
}

impl Global {
    /// Decides for the whole process whether results are coloured: by `--color`, else by the terminal and the environment.
    pub(crate) fn choose_colours(&self) {
        match self.color {
            ColorChoice::Auto => anstream::ColorChoice::Auto,
            ColorChoice::Always => anstream::ColorChoice::Always,
            ColorChoice::Never => anstream::ColorChoice::Never,
        }
        .write_global();
    }

    /// The options that name this instance on another command line, each after a space. Empty for the default instance.
    pub(crate) fn options(&self) -> String {
        let of = |option: &str, path: &Path, usual: &str| {
            if path == Path::new(usual) { String::new() } else { format!(" {option} {}", quoted(path)) }
        };
        of("--pin-root", &self.pin_root, Paths::PIN_ROOT) + &of("--state-dir", &self.state_dir, Paths::STATE_DIR)
    }

    pub(crate) fn paths(&self) -> Paths {
        Paths { pin_root: self.pin_root.clone(), state_dir: self.state_dir.clone() }
    }
}

/// A path, quoted as one word for a shell.
fn quoted(path: &Path) -> String {
    let path = path.to_string_lossy();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@,".contains(&byte);
    if path.bytes().all(is_plain) { path.into_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check the kernel, the NICs and a configuration, and say how to fix what does not work
    Doctor(Doctor),
    /// Attach to interfaces and pin; update the programs of attached interfaces in place
    Attach(Attach),
    /// Detach from interfaces; with --all, remove every pin too
    Detach(Detach),
    /// Validate a configuration without changing anything
    Check(ConfigFile),
    /// Show what `apply` would change; the exit code is 0 for nothing and 5 for something
    Plan(ConfigFile),
    /// Make the running state match a configuration, without disturbing flows that need no change
    Apply(Apply),
    /// Print the running configuration as TOML
    Show,
    /// Show live colour, phase, flows and counters
    Status(Status),
    /// Make a colour live for all new flows, at one instant
    Switch(Switch),
    /// Make the colour live that was live before the last change
    Rollback(Rollback),
    /// Keep a switch that was made with --confirm-within
    Confirm(Confirm),
    /// Send a share of new flows to green (canary)
    Split(Split),
    /// Hold new flows while those in flight go on
    Freeze(Freeze),
    /// End a freeze: held packets go on, in order
    Thaw(Thaw),
    /// Count the flows that a switch has left on the idle colour; wait for them, or end them
    Drain(Drain),
    /// On a backend: unpack what the modes ipip and gue have encapsulated
    Decap(Decap),
    /// Rehearse the recovery: switch, ask the gates, switch back, and report
    #[cfg(feature = "serve")]
    Drill(Drill),
    /// List open flows
    Flows(Flows),
    /// Say what the data path does with a packet, and why
    Explain(Explain),
    /// Show who switched what, when and why, and from which generation to which
    History(History),
    /// Run the controller, which watches the instance; the data path does not need it
    #[cfg(feature = "serve")]
    Serve(Serve),
    /// Show all of it live on the whole terminal, with keys for switch, rollback and confirm
    #[cfg(feature = "serve")]
    Top(Top),
    /// Print a script that completes bgctl's command line in a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    Man {
        /// The directory; created if it is missing
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

/// The option that names a configuration.
#[derive(Debug, ClapArgs)]
pub(crate) struct ConfigFile {
    /// The configuration; `-` reads it from stdin
    #[arg(short, long, value_name = "FILE", default_value = USUAL_CONFIG)]
    pub(crate) config: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Apply {
    #[command(flatten)]
    pub(crate) file: ConfigFile,
    /// Apply even if virtual addresses move to a deployment whose other colour is live, or leave one whose switch waits for its
    /// confirmation or its time
    #[arg(long)]
    pub(crate) force: bool,
    /// The reason, for the history
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Forget which backends are down, so that all get new flows: for when nothing checks them any more
    #[arg(long)]
    pub(crate) forget_health: bool,
}

/// The argument of a command that can be limited to one deployment.
#[derive(Debug, ClapArgs)]
pub(crate) struct OneDeployment {
    /// Only this deployment
    #[arg(add = ArgValueCandidates::new(complete::deployments))]
    pub(crate) deployment: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Doctor {
    /// Only these interfaces [default: all of this network namespace]
    #[arg(value_name = "IFACE", add = ArgValueCandidates::new(complete::interfaces))]
    pub(crate) interfaces: Vec<String>,
    /// Check this configuration too; `-` reads it from stdin [default: /etc/bgctl/bgctl.toml, if it exists]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Only print nftables rules that exempt packets to and from the configuration's backends from conntrack
    #[arg(long)]
    pub(crate) notrack: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Attach {
    /// Interfaces to attach to
    #[arg(
        value_name = "IFACE",
        required_unless_present = "from",
        conflicts_with = "from",
        add = ArgValueCandidates::new(complete::interfaces)
    )]
    pub(crate) interfaces: Vec<String>,
    /// Read the interfaces from this file: on each line a name, a pattern or driver=NAME, and optionally a mode
    #[arg(long, value_name = "FILE")]
    pub(crate) from: Option<PathBuf>,
    /// How long to wait for another bgctl that works on the instance [default: 30s], and, with --from, for interfaces
    /// that do not exist yet [default: not at all]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) wait: Option<Duration>,
    /// Where the programs run
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    pub(crate) mode: Mode,
    /// Room for this many flows at the first attach, rounded up to a power of two; k, M and G multiply by a thousand, a
    /// million and so on [default: 262144]
    #[arg(long, value_name = "N", value_parser = count(1, MAX_FLOWS))]
    pub(crate) flows: Option<u32>,
    /// Room for this many services at the first attach [default: 1024]
    #[arg(long, value_name = "N", value_parser = count(1, MAX_SERVICES))]
    pub(crate) services: Option<u32>,
    /// Room for this many backends, of all services and both colours, at the first attach [default: 16384]
    #[arg(long, value_name = "N", value_parser = count(2, MAX_BACKENDS))]
    pub(crate) backends: Option<u32>,
    /// A pinned XDP program that gets the packets that are not for a VIP
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) next: Option<PathBuf>,
    /// Attach even behind another bgctl instance, whose VIPs this one then never sees, or with pins that vanish with
    /// this mount namespace
    #[arg(long)]
    pub(crate) force: bool,
}

/// The modes of attaching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Native XDP on a NIC whose driver supports it, tc on virtual interfaces
    Auto,
    /// XDP in the driver
    Native,
    /// XDP in the network stack, on any interface
    Generic,
    /// tc in both directions, for interfaces where checksums may be unfinished (veth, tap, bridge)
    Tc,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Detach {
    /// Interfaces to detach from
    #[arg(
        value_name = "IFACE",
        required_unless_present = "all",
        conflicts_with = "all",
        add = ArgValueCandidates::new(complete::attached_interfaces)
    )]
    pub(crate) interfaces: Vec<String>,
    /// Detach from all interfaces and remove every pin; open flows are lost
    #[arg(long)]
    pub(crate) all: bool,
    /// How long to wait for another bgctl that works on the instance [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) wait: Option<Duration>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Decap {
    /// What to do
    #[arg(value_enum)]
    pub(crate) what: DecapWhat,
    /// Interfaces on which encapsulated packets arrive
    #[arg(value_name = "IFACE", required_if_eq_any([("what", "attach"), ("what", "detach")]), add = ArgValueCandidates::new(complete::interfaces))]
    pub(crate) interfaces: Vec<String>,
    /// Unpack packets from these sources alone [default: the networks that the interface is connected to]
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub(crate) from: Vec<Prefix>,
    /// The UDP port of GUE [default: 6080]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) gue_port: Option<u16>,
    /// Where the program runs
    #[arg(long, value_enum, default_value_t = XdpOnly::Auto)]
    pub(crate) mode: XdpOnly,
}

/// What `decap` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DecapWhat {
    /// Unpack; if the interface is attached already, read this host's addresses again
    Attach,
    /// Unpack no longer
    Detach,
    /// Show what was unpacked; without IFACE, on all interfaces
    Status,
}

/// The modes of XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum XdpOnly {
    /// XDP in the driver if it can, else in the network stack, but not on a veth
    Auto,
    /// XDP in the driver
    Native,
    /// XDP in the network stack, on any interface
    Generic,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) only: OneDeployment,
    /// Refresh every second until interrupted; with --json, print one line each time
    #[arg(short, long)]
    pub(crate) watch: bool,
}

#[cfg(feature = "serve")]
#[derive(Debug, ClapArgs)]
pub(crate) struct Top {
    #[command(flatten)]
    pub(crate) only: OneDeployment,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Flows {
    #[command(flatten)]
    pub(crate) only: OneDeployment,
    /// Only flows to this colour
    #[arg(long, value_enum)]
    pub(crate) colour: Option<ColourName>,
    /// Only flows to this backend
    #[arg(long, value_name = "ADDR:PORT", add = ArgValueCandidates::new(complete::backends))]
    pub(crate) backend: Option<SocketAddr>,
    /// Only flows of this service
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(complete::services))]
    pub(crate) service: Option<String>,
    /// Print only the number of flows
    #[arg(long)]
    pub(crate) count: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Explain {
    /// Source of the packet: a client, or a backend that replies
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) from: SocketAddr,
    /// Destination of the packet
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) to: SocketAddr,
    /// Its transport protocol
    #[arg(long, value_enum)]
    pub(crate) protocol: ProtocolName,
    /// Flags of a TCP segment, with commas between [default: SYN to a virtual address, ACK otherwise]
    #[arg(long, value_name = "FLAGS")]
    pub(crate) flags: Option<TcpFlags>,
    /// The interface that the packet comes in by; for a packet of this host, the one that it leaves by [default: by the host's routes]
    #[arg(long, value_name = "IFACE", add = ArgValueCandidates::new(complete::attached_interfaces))]
    pub(crate) iface: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProtocolName {
    Tcp,
    Udp,
}

impl From<ProtocolName> for Protocol {
    fn from(name: ProtocolName) -> Self {
        match name {
            ProtocolName::Tcp => Self::Tcp,
            ProtocolName::Udp => Self::Udp,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct History {
    #[command(flatten)]
    pub(crate) only: OneDeployment,
    /// Only the newest N records
    #[arg(short = 'n', long = "last", value_name = "N")]
    pub(crate) last: Option<usize>,
    /// Only records since an RFC 3339 time, or since a duration before now ("2h", "7days")
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    pub(crate) since: Option<jiff::Timestamp>,
    /// Check that no record of any deployment was changed, removed, inserted or moved
    #[arg(long, conflicts_with_all = ["last", "since"])]
    pub(crate) verify: bool,
}

#[cfg(feature = "serve")]
#[derive(Debug, ClapArgs)]
pub(crate) struct Serve {
    /// The configuration [default: /etc/bgctl/bgctl.toml, if it exists]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The form of messages on stderr
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Auto)]
    pub(crate) log_format: LogFormat,
}

/// The forms of the controller's messages.
#[cfg(feature = "serve")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// The fields of the systemd journal under systemd, else text
    Auto,
    /// A line of text for each message
    Text,
    /// A JSON object for each message
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Args::command().debug_assert();
    }
}
