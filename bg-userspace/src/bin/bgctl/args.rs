//! The grammar of the command line. What a command does is in [`crate::cmd`].

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use bg_common::Colour;
use bg_userspace::{
    Condition, MAX_BACKENDS, MAX_SERVICES, Paths, Protocol, TcpFlags,
    config::{DivideBy, OnSwitch},
};
use clap::{Args as ClapArgs, ColorChoice, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::ArgValueCandidates;

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
    /// List open flows
    Flows(Flows),
    /// Say what the data path does with a packet, and why
    Explain(Explain),
    /// Show who switched what, when and why, and from which generation to which
    History(History),
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
    /// Apply even if virtual addresses move to a deployment whose other colour is live
    #[arg(long)]
    pub(crate) force: bool,
    /// The reason, for the history
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
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
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) only: OneDeployment,
    /// Refresh every second until interrupted; with --json, print one line each time
    #[arg(short, long)]
    pub(crate) watch: bool,
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

#[derive(Debug, ClapArgs)]
pub(crate) struct Switch {
    /// The deployment
    #[arg(add = ArgValueCandidates::new(complete::deployments))]
    pub(crate) deployment: String,
    /// The colour to make live [default: the idle one]
    #[arg(value_enum)]
    pub(crate) to: Option<ColourName>,
    #[command(flatten)]
    pub(crate) change: Change,
    /// Go back after this time, unless `bgctl confirm` comes before; nothing has to keep running for it
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) confirm_within: Option<Duration>,
    /// Go back as soon as this holds for new flows of the new colour: "resets > 5% of 200" (answered with a reset), "unanswered > 5% of 200"
    /// (without an answer after a second), or "silence 2s" (none answered for so long); until `bgctl confirm` or the next change. The number after "of" is the least
    /// number of flows that may judge. One of each kind; nothing has to keep running for it
    #[arg(long, value_name = "CONDITION")]
    pub(crate) revert_if: Vec<Condition>,
    /// Move the share of new flows from the old colour to the new one in this time, by the clock; nothing has to keep running
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) ramp: Option<Duration>,
    /// Take effect, or begin the ramp, at this RFC 3339 time
    #[arg(long, value_name = "TIME")]
    pub(crate) at: Option<jiff::Timestamp>,
    /// Hold new flows from before the switch until after it, for this time at most; if it is not complete by then, the old colour
    /// stays live
    #[arg(long, value_name = "DURATION", value_parser = period, conflicts_with_all = ["confirm_within", "revert_if", "ramp", "at"])]
    pub(crate) freeze: Option<Duration>,
    /// With --freeze: a shell command that runs first, when no new flow is opened any more
    #[arg(long, value_name = "CMD", requires = "freeze")]
    pub(crate) before: Option<String>,
    /// With --freeze: a shell command that runs after the switch, before new flows go on
    #[arg(long, value_name = "CMD", requires = "freeze")]
    pub(crate) after: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Drain {
    /// The deployment
    #[arg(add = ArgValueCandidates::new(complete::deployments))]
    pub(crate) deployment: String,
    /// Wait until no flow is left
    #[arg(long)]
    pub(crate) wait: bool,
    /// Wait for this long at most
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// What happens to flows that are still left then
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Then::Keep)]
    pub(crate) then: Then,
    /// The flows of this backend, whatever its colour. It gets no new ones if its weight is 0
    #[arg(long, value_name = "ADDR:PORT", add = ArgValueCandidates::new(complete::backends))]
    pub(crate) backend: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Then {
    /// They stay on their backend
    Keep,
    /// They end; TCP connections are reset at both ends
    Reset,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Confirm {
    /// The deployment
    #[arg(add = ArgValueCandidates::new(complete::deployments))]
    pub(crate) deployment: String,
    /// Refuse unless the deployment is at this generation
    #[arg(long, value_name = "N")]
    pub(crate) if_generation: Option<u32>,
    /// The reason, for the history
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Split {
    /// The deployment
    #[arg(add = ArgValueCandidates::new(complete::deployments))]
    pub(crate) deployment: String,
    /// How much of the new flows goes to green, in percent, with at most two decimals
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub(crate) green: u16,
    /// What the share divides: flows, or clients, so that a client meets one colour only [default: as configured]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) by: Option<ByName>,
    /// Refuse unless the deployment is at this generation
    #[arg(long, value_name = "N")]
    pub(crate) if_generation: Option<u32>,
    /// Change the share even if no interface is attached
    #[arg(long)]
    pub(crate) force: bool,
    /// The reason, for the history
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ByName {
    /// Each flow by itself
    Flow,
    /// All flows of a client, over all services of the deployment
    Client,
}

impl From<ByName> for DivideBy {
    fn from(name: ByName) -> Self {
        match name {
            ByName::Flow => Self::Flow,
            ByName::Client => Self::Client,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Rollback {
    /// The deployment
    #[arg(add = ArgValueCandidates::new(complete::deployments))]
    pub(crate) deployment: String,
    /// The colour to make live [default: the one that was live before the last change]
    #[arg(value_enum)]
    pub(crate) to: Option<ColourName>,
    #[command(flatten)]
    pub(crate) change: Change,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Freeze {
    /// The deployment
    #[arg(add = ArgValueCandidates::new(complete::deployments))]
    pub(crate) deployment: String,
    /// After this time the freeze ends by itself
    #[arg(long, value_name = "DURATION", value_parser = period, default_value = "10s")]
    pub(crate) max: Duration,
    /// Drop packets that would open a flow, rather than hold them
    #[arg(long)]
    pub(crate) drop: bool,
    /// The reason, for the history
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Thaw {
    /// The deployment
    #[arg(add = ArgValueCandidates::new(complete::deployments))]
    pub(crate) deployment: String,
    /// The reason, for the history
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

/// The options of a change of colour.
#[derive(Debug, ClapArgs)]
pub(crate) struct Change {
    /// What happens to open flows [default: as configured]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) on_switch: Option<OnSwitchName>,
    /// Refuse unless the deployment is at this generation
    #[arg(long, value_name = "N")]
    pub(crate) if_generation: Option<u32>,
    /// Switch even if no interface is attached
    #[arg(long)]
    pub(crate) force: bool,
    /// Change nothing. Print what would happen to open flows, whether the backends are there, and what would be refused
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The reason, for the history
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColourName {
    Blue,
    Green,
}

impl From<ColourName> for Colour {
    fn from(name: ColourName) -> Self {
        match name {
            ColourName::Blue => Self::Blue,
            ColourName::Green => Self::Green,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnSwitchName {
    /// They stay on their backend until they end
    Drain,
    /// They end or move at once
    Cut,
}

impl From<OnSwitchName> for OnSwitch {
    fn from(name: OnSwitchName) -> Self {
        match name {
            OnSwitchName::Drain => Self::Drain,
            OnSwitchName::Cut => Self::Cut,
        }
    }
}

/// The most flows that may be asked for: more than that is a slip of the finger.
const MAX_FLOWS: u32 = 1 << 26;

/// Parses a number from `least` to `most`: digits, then optionally a decimal suffix.
fn count(least: u32, most: u32) -> impl Fn(&str) -> Result<u32, String> + Clone {
    const SUFFIXES: [(&str, u64); 6] =
        [("k", 1_000), ("K", 1_000), ("m", 1_000_000), ("M", 1_000_000), ("g", 1_000_000_000), ("G", 1_000_000_000)];
    move |text| {
        let (digits, unit) =
            SUFFIXES.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit))).unwrap_or((text, 1));
        let count = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(unit));
        let count = count.and_then(|count| u32::try_from(count).ok()).filter(|count| (least..=most).contains(count));
        count.ok_or_else(|| {
            format!("expected {least} to {most}, or a number with k, M or G behind it, such as 2k or 1M")
        })
    }
}

/// Parses a percentage, into basis points.
fn percent(text: &str) -> Result<u16, String> {
    let expected = || format!("expected a percentage from 0 to 100 with at most two decimals, got \"{text}\"");
    let digits = text.strip_suffix('%').unwrap_or(text);
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, "00"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(decimals) || decimals.len() > 2 {
        return Err(expected());
    }
    let points = format!("{whole}{decimals:0<2}").parse::<u16>().ok();
    points.filter(|points| *points <= 10_000).ok_or_else(expected)
}

/// Parses a duration that is not zero.
fn period(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(period) if !period.is_zero() => Ok(period),
        _ => Err("expected a duration such as 500ms or 10s".to_owned()),
    }
}

/// Parses a moment: a time, or how long ago it was.
fn moment(text: &str) -> Result<jiff::Timestamp, String> {
    if let Ok(moment) = text.parse() {
        return Ok(moment);
    }
    let ago = humantime::parse_duration(text).map_err(|_| {
        "expected an RFC 3339 time such as 2025-03-01T12:00:00Z, or a duration such as 2h or 7days".to_owned()
    })?;
    Ok(jiff::Timestamp::now().checked_sub(ago).unwrap_or(jiff::Timestamp::MIN))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn numbers_are_counted_in_thousands_and_millions() {
        let flow_count = count(1, MAX_FLOWS);
        for (text, count) in [("1", 1), ("500k", 500_000), ("500K", 500_000), ("1M", 1_000_000), ("67108864", 1 << 26)]
        {
            assert_eq!(flow_count(text), Ok(count), "{text}");
        }
        for text in
            ["", "0", "k", "-1", "1.5M", "1G", "67108865", "99999999999999999999", "18446744073709551615G", "1 M"]
        {
            assert!(flow_count(text).is_err(), "{text}");
        }
        let backend_count = count(2, MAX_BACKENDS);
        assert_eq!([backend_count("1"), backend_count("2")].map(|count| count.ok()), [None, Some(2)]);
        assert!(backend_count("262145").unwrap_err().starts_with("expected 2 to 262144, "));
    }

    #[test]
    fn a_percentage_has_at_most_two_decimals() {
        for (text, points) in
            [("0", 0), ("5", 500), ("12.5", 1250), ("99.99%", 9999), ("100", 10_000), ("100.00", 10_000)]
        {
            assert_eq!(percent(text), Ok(points), "{text}");
        }
        for text in ["", "%", "-1", "1.234", "100.01", "101", ".5", "5.", "1e1", "99999", "+5"] {
            assert!(percent(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_moment_is_a_time_or_a_duration_ago() {
        let now = jiff::Timestamp::now();
        assert_eq!(moment("2025-03-01T12:00:00Z").unwrap().to_string(), "2025-03-01T12:00:00Z");
        assert_eq!(moment("2025-03-01T13:00:00+01:00").unwrap().to_string(), "2025-03-01T12:00:00Z");
        let two_hours = moment("2h").unwrap();
        assert!((now.as_second() - two_hours.as_second() - 7200).abs() < 60);
        assert_eq!(moment("99999years").unwrap(), jiff::Timestamp::MIN);
        for text in ["", "yesterday", "12", "-2h", "99999999999999999999years"] {
            assert!(moment(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_grammar_is_sound() {
        Args::command().debug_assert();
    }
}
