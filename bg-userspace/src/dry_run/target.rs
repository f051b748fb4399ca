//! Whether backends are there: a route, a next hop that responds, and, for TCP, a connection.

use std::{collections::HashMap, io, net::SocketAddr, time::Duration};

use bg_common::{Colour, Mode, Protocol};
use serde::Serialize;

use crate::{
    config::mode_name,
    health::Health,
    json,
    net::{Connected, NeighbourState, NextHop, Patience, connect_to_all, is_local, neighbour, next_hop},
    running::{RunningBackend, RunningService, UNSETTLED},
};

/// Enough for an answer whose first SYN was lost, and for a thousand backends that are gone.
const PATIENCE: Patience = Patience { each: Duration::from_millis(1500), all: Duration::from_secs(6) };

/// A backend that would get new flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TargetBackend {
    /// Name of its service.
    pub service: String,
    /// The backend.
    pub backend: SocketAddr,
    /// Its colour.
    #[serde(serialize_with = "json::colour")]
    pub colour: Colour,
    /// Its share of new flows, relative to the other backends.
    pub weight: u32,
    /// Whether it is there, as far as this host can find out; `None` if it cannot.
    pub ready: Option<bool>,
    /// Why it is not, or why that is not known.
    pub why: Option<String>,
}

/// What was found out about a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    ready: Option<bool>,
    why: Option<String>,
}

impl Finding {
    const READY: Self = Self { ready: Some(true), why: None };

    fn not_ready(why: impl Into<String>) -> Self {
        Self { ready: Some(false), why: Some(why.into()) }
    }

    fn unknown(why: impl Into<String>) -> Self {
        Self { ready: None, why: Some(why.into()) }
    }
}

/// A backend, as far as it matters here. Services may share it.
type Endpoint = (SocketAddr, Protocol, Mode);

/// The backends of these colours, by service and address. Those of another network namespace cannot be examined.
pub(super) fn examine(services: &[&RunningService], colours: &[Colour], is_here: bool) -> Vec<TargetBackend> {
    let of = |service: &RunningService, backend: &RunningBackend, mode: Mode| -> Endpoint {
        (backend.address, Protocol::from_u8(service.vip.protocol).unwrap_or(Protocol::Tcp), mode)
    };
    let each = || services.iter().flat_map(|service| colours.iter().map(move |colour| (service, *colour)));
    let all = || {
        each().flat_map(|(service, colour)| {
            let backends = service.backends[colour as usize].iter().map(|backend| (backend, service.mode));
            // Without the controller, a new connection is refused.
            let listeners = service.listeners[colour as usize].iter().map(|listener| (listener, Mode::Local));
            backends.chain(listeners).map(move |(backend, mode)| (service, colour, backend, mode))
        })
    };
    let findings = if is_here {
        findings(all().map(|(service, _, backend, mode)| of(service, backend, mode)))
    } else {
        HashMap::new()
    };
    let elsewhere = || Finding::unknown("it is in the network namespace of the instance, and this command is not");
    let mut backends: Vec<_> = all()
        .map(|(service, colour, backend, mode)| {
            let Finding { ready, why } = checked_finding(backend)
                .unwrap_or_else(|| findings.get(&of(service, backend, mode)).cloned().unwrap_or_else(elsewhere));
            let is_listener = service.mode == Mode::Tee && mode == Mode::Local;
            let why = why.map(|why| if is_listener { format!("{why} (the listener of `bgctl serve`)") } else { why });
            let weight = if backend.weight == UNSETTLED { 0 } else { backend.weight };
            TargetBackend { service: service.name.clone(), backend: backend.address, colour, weight, ready, why }
        })
        .collect();
    backends.sort_by(|a, b| (&a.service, a.backend).cmp(&(&b.service, b.backend)));
    backends
}

/// What its health check says, if that decides it: it looks closer than an attempt to connect does.
fn checked_finding(backend: &RunningBackend) -> Option<Finding> {
    (backend.health.health() == Health::Down).then(|| Finding::not_ready("its health check fails"))
}

fn findings(endpoints: impl Iterator<Item = Endpoint>) -> HashMap<Endpoint, Finding> {
    let mut findings: HashMap<Endpoint, Finding> = endpoints.map(|endpoint| (endpoint, Finding::READY)).collect();
    let mut hops = HashMap::new();
    for (&(address, protocol, mode), finding) in &mut findings {
        *finding = match way_to(address, mode) {
            Ok(hop) => {
                hops.extend(hop.map(|hop| (address, hop)));
                // A connection says more.
                hop.filter(|_| protocol == Protocol::Udp).map_or(Finding::READY, neighbour_finding)
            }
            Err(finding) => finding,
        };
    }
    let is_to_try =
        |(endpoint, finding): &(&Endpoint, &Finding)| endpoint.1 == Protocol::Tcp && **finding == Finding::READY;
    let to_try: Vec<Endpoint> = findings.iter().filter(is_to_try).map(|(endpoint, _)| *endpoint).collect();
    let addresses: Vec<_> = to_try.iter().map(|(address, ..)| *address).collect();
    for (endpoint, connected) in to_try.into_iter().zip(connect_to_all(&addresses, PATIENCE)) {
        let finding = connected_finding(connected, hops.get(&endpoint.0).copied());
        findings.insert(endpoint, if endpoint.2.is_direct() { at_own_address(finding) } else { finding });
    }
    findings
}

/// The next hop to a backend in mode `nat`. In mode `local` there is none, but the address has to be one of this host.
fn way_to(address: SocketAddr, mode: Mode) -> Result<Option<NextHop>, Finding> {
    match (mode, is_local(address.ip())) {
        (Mode::Local, true) => Ok(None),
        (Mode::Local, false) => Err(Finding::not_ready("not an address of this host, which mode `local` needs")),
        (Mode::Nat, true) => Err(Finding::not_ready("an address of this host, to which mode `nat` sends nothing")),
        // The controller connects to it.
        (Mode::Tee, true) => Ok(None),
        (Mode::L2dsr | Mode::Ipip | Mode::Gue, true) => Err(Finding::not_ready(format!(
            "an address of this host, to which mode `{}` sends nothing",
            mode_name(mode)
        ))),
        (mode, false) => match next_hop(address.ip()) {
            Ok(hop) if mode == Mode::L2dsr && hop.address != address.ip() => Err(Finding::not_ready(format!(
                "behind the gateway {}, where mode `l2dsr` does not reach",
                hop.address
            ))),
            Ok(hop) => Ok(Some(hop)),
            Err(error) => Err(Finding::not_ready(format!("no route: {error}"))),
        },
    }
}

/// Clients are served at the VIP, which the backend has itself: nobody need listen at its own address.
fn at_own_address(finding: Finding) -> Finding {
    match finding.why {
        Some(why) if finding.ready == Some(false) => {
            Finding::unknown(format!("{why} at its own address; the VIP there cannot be tried from here"))
        }
        _ => finding,
    }
}

fn neighbour_finding(hop: NextHop) -> Finding {
    match neighbour(hop) {
        Ok(NeighbourState::Known) => Finding::READY,
        Ok(NeighbourState::Silent) => Finding::not_ready(silent(hop)),
        Ok(NeighbourState::Unknown) => Finding::unknown(format!("the MAC address of {} is not known yet", hop.address)),
        Err(error) => Finding::unknown(format!("the MAC address of {} cannot be looked up: {error}", hop.address)),
    }
}

fn silent(hop: NextHop) -> String {
    format!("{} does not respond to requests for its MAC address", hop.address)
}

fn connected_finding(connected: Connected, hop: Option<NextHop>) -> Finding {
    match connected {
        Connected::Yes => Finding::READY,
        Connected::Silent => {
            // The kernel has asked for the MAC address, if it did not know it.
            let is_known = |hop: &NextHop| matches!(neighbour(*hop), Ok(NeighbourState::Known) | Err(_));
            let unanswered = hop.filter(|hop| !is_known(hop)).map(silent);
            let no_answer = || format!("no answer to a connection within {:?}", PATIENCE.each);
            Finding::not_ready(unanswered.unwrap_or_else(no_answer))
        }
        Connected::No(error) if is_of_this_host(&error) => {
            Finding::unknown(format!("no connection attempted: {error}"))
        }
        Connected::No(error) => Finding::not_ready(format!("no connection: {error}")),
        Connected::Untried => Finding::unknown("not tried: too many other backends gave no answer"),
    }
}

/// Whether this host could not even send a packet.
fn is_of_this_host(error: &io::Error) -> bool {
    const CAUSES: [i32; 8] = [
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOMEM,
        libc::ENOBUFS,
        libc::EADDRNOTAVAIL,
        libc::EACCES,
        libc::EPERM,
        libc::EAFNOSUPPORT,
    ];
    error.raw_os_error().is_some_and(|error| CAUSES.contains(&error))
}
