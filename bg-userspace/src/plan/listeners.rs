//! Choosing the listeners of services in mode `tee` whose configuration names none.
//!
//! A service keeps the listeners that it has, and a new one gets those that an earlier apply has chosen for its VIP, also if this host does not have their
//! address: the host boots, its network comes up in parts, or the address is on another host for a moment. Whether it has another address for good only a person can
//! say, so there is a warning, and nothing else is chosen.
//! The choice depends on nothing but the configuration, the running state, the earlier choices and this host's addresses and sockets, so that an apply that is killed and called again
//! chooses the same.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use bg_common::{Colour, Protocol};

use crate::{
    Error,
    config::{Config, Deployment, Service},
    kept_listeners::{Listeners, is_without_listeners, recall},
    net::is_local,
    running::{Running, address_of, service_key},
};

/// The first port that is tried. It is below the ports that Linux gives to outgoing connections.
const FIRST_PORT: u16 = 17_000;
/// How long an apply waits for ports that an earlier one has chosen.
const PATIENCE: Duration = Duration::from_secs(6);

/// A configuration with listeners for every service in mode `tee`.
#[derive(Debug)]
pub(crate) struct WithListeners<'a> {
    pub(crate) config: Cow<'a, Config>,
    /// Listeners that stay at an address that this host does not have, although it has another one.
    pub(crate) warnings: Vec<String>,
}

/// Chooses the listeners that `config` does not name. The directory `home` has those that were chosen before. What another program listens on now is not taken.
pub(crate) fn with_listeners<'a>(
    config: &'a Config,
    running: &Running,
    home: &Path,
) -> Result<WithListeners<'a>, Error> {
    let mut warnings = Vec::new();
    if !services(config).any(|(_, service)| is_without_listeners(service)) {
        return Ok(WithListeners { config: Cow::Borrowed(config), warnings });
    }
    let before = recall(home);
    let mut taken = taken(config, running);
    // First those that stay: a new service must not get what a later one has.
    let mut kept = HashMap::new();
    for (deployment, service) in services(config).filter(|(_, service)| is_without_listeners(service)) {
        let was_chosen = || {
            let chosen = before.get(&service.vip).copied();
            chosen.filter(|listen| !listen.iter().any(|address| taken.contains(address) || is_busy(address)))
        };
        if let Some(listen) = present(deployment, service, running).or_else(was_chosen) {
            taken.extend(listen);
            kept.insert(service.vip, listen);
        }
    }
    let mut config = config.clone();
    for deployment in &mut config.deployments {
        for service in deployment.services.iter_mut().filter(|service| is_without_listeners(service)) {
            let listen = match kept.get(&service.vip) {
                Some(listen) => {
                    let is_away = listen.iter().any(|address| !is_local(address.ip()));
                    // At boot no host has its addresses yet.
                    if is_away && let Some(other) = address(service) {
                        warnings.push(away(&deployment.name, &service.name, listen[0].ip(), other));
                    }
                    *listen
                }
                None => chosen(service, &taken)?,
            };
            taken.extend(listen);
            service.tee.listen = Some(listen);
        }
    }
    Ok(WithListeners { config: Cow::Owned(config), warnings })
}

/// Waits a few seconds for ports that an earlier apply has chosen, as long as something listens there. The controller does so for five seconds more after an
/// instance is gone.
pub(crate) fn wait_for_ports(config: &Config, home: &Path, running: impl FnOnce() -> Option<Running>) {
    if !services(config).any(|(_, service)| is_without_listeners(service)) {
        return;
    }
    let (before, Some(running)) = (recall(home), running()) else { return };
    let new = services(config).filter(|(deployment, service)| {
        is_without_listeners(service) && present(deployment, service, &running).is_none()
    });
    let ports: Vec<_> = new.filter_map(|(_, service)| before.get(&service.vip)).flatten().collect();
    // Where the controller listens for services that run, it is right, for example if one is about to get into another deployment.
    let taken = taken(config, &running);
    let ports: Vec<_> = ports.into_iter().filter(|address| !taken.contains(address)).collect();
    let end = Instant::now() + PATIENCE;
    while ports.iter().any(|address| is_busy(address)) && Instant::now() < end {
        sleep(Duration::from_millis(50));
    }
}

/// All services, with their deployments.
fn services(config: &Config) -> impl Iterator<Item = (&Deployment, &Service)> {
    config
        .deployments
        .iter()
        .flat_map(|deployment| deployment.services.iter().map(move |service| (deployment, service)))
}

/// The listeners that a service has. The rows of one that moves to another deployment are written anew, while the old ones still exist.
fn present(deployment: &Deployment, service: &Service, running: &Running) -> Option<[SocketAddr; 2]> {
    let current = running.by_vip(&service_key(service.vip, service.protocol))?;
    let stays = running.name_of(current.deployment) == Some(deployment.name.as_str());
    current.tee.listen.filter(|_| stays)
}

fn away(deployment: &str, service: &str, kept: IpAddr, other: IpAddr) -> String {
    format!(
        "the listeners of service \"{service}\" of deployment \"{deployment}\" stay at {kept}, which is no address of this host now: until it is, connections to the \
         service are refused. If {kept} does not come back, name others, for example at {other} (`listen`)"
    )
}

/// Those that were chosen for services of `given`, whose configuration is `config` now.
pub(crate) fn chosen_listeners(given: &Config, config: &Config) -> Listeners {
    let services = |config: &'_ Config| {
        let services = config.deployments.iter().flat_map(|deployment| &deployment.services);
        services.map(|service| (service.vip, service.tee.listen, is_without_listeners(service))).collect::<Vec<_>>()
    };
    let both = services(given).into_iter().zip(services(config));
    both.filter(|((_, _, is_without), _)| *is_without)
        .filter_map(|(_, (vip, listen, _))| Some((vip, listen?)))
        .collect()
}

/// Whether something listens there. That the address is missing is no sign of it: at boot, it comes later.
fn is_busy(address: &SocketAddr) -> bool {
    TcpListener::bind(address).is_err_and(|error| error.kind() != io::ErrorKind::AddrNotAvailable)
}

/// The addresses that no listener may have: those that packets are sent to or come from.
fn taken(config: &Config, running: &Running) -> HashSet<SocketAddr> {
    let services = config.deployments.iter().flat_map(|deployment| &deployment.services);
    let wanted = services.filter(|service| service.protocol == Protocol::Tcp).flat_map(|service| {
        let own = std::iter::once(service.vip).chain(service.preview).chain(service.tee.listen.into_iter().flatten());
        own.chain(service.backends.iter().flatten().map(|backend| backend.address))
    });
    let running = running.services.iter().flat_map(|service| {
        let listeners = service.tee.listen.into_iter().flatten();
        std::iter::once(address_of(&service.vip)).chain(listeners)
    });
    wanted.chain(running).collect()
}

/// Two free ports of an address of this host.
fn chosen(service: &Service, taken: &HashSet<SocketAddr>) -> Result<[SocketAddr; 2], Error> {
    let refuse = |why: &str| Error::Unrepresentable {
        what: format!(
            "service \"{}\": {why}. Name the listeners, at an address of this host that gets packets from outside: listen = {{ blue = \
             \"ADDRESS:{FIRST_PORT}\", green = \"ADDRESS:{}\" }}",
            service.name,
            FIRST_PORT + 1
        ),
    };
    let ip =
        address(service).ok_or_else(|| refuse("found no address of this host for the listeners of mode \"tee\""))?;
    let is_free = |address: &SocketAddr| !taken.contains(address) && TcpListener::bind(address).is_ok();
    let mut free = (FIRST_PORT..=u16::MAX).map(|port| SocketAddr::new(ip, port)).filter(is_free);
    let pair = free.next().zip(free.next());
    pair.map(<[SocketAddr; 2]>::from).ok_or_else(|| refuse(&format!("found no two free ports at {ip}")))
}

/// The VIP, if this host has it, or else the address from which this host would connect to a backend.
fn address(service: &Service) -> Option<IpAddr> {
    let source = |to: SocketAddr| {
        let socket = UdpSocket::bind((if to.is_ipv4() { IpAddr::from([0; 4]) } else { [0_u16; 8].into() }, 0)).ok()?;
        // Sends nothing.
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let backends = Colour::ALL.into_iter().flat_map(|colour| service.backends(colour));
    let sources = backends.filter_map(|backend| source(backend.address));
    std::iter::once(service.vip.ip()).chain(sources).find(|ip| !ip.is_loopback() && is_local(*ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(services: &[(&str, &str)]) -> Config {
        let services = services.iter().map(|(vip, more)| {
            format!(
                "[[deployments.shop.services]]\nvip = \"{vip}\"\nprotocol = \"tcp\"\nmode = \"tee\"\n{more}\n\
                 blue = [\"127.0.0.1:1\"]\ngreen = [\"127.0.0.1:2\"]\n"
            )
        });
        crate::config::parse("test".as_ref(), &services.collect::<String>()).unwrap()
    }

    /// An address of this host that is not the loopback.
    fn own() -> IpAddr {
        let lab = config(&[("203.0.113.10:1", "")]).deployments.remove(0).services.remove(0);
        let routed = Service { backends: [vec![], vec![]], ..lab };
        let to = crate::config::BackendSpec { address: "192.0.2.1:9".parse().unwrap(), weight: 1 };
        address(&Service { backends: [vec![to], vec![]], ..routed }).expect("this host has a default route")
    }

    #[test]
    fn ports_are_in_order_and_nothing_else_has_them() {
        let ip = own();
        let at = |port: u16| SocketAddr::new(ip, port);
        let listen = format!("listen = {{ blue = \"{}\", green = \"{}\" }}", at(FIRST_PORT), at(FIRST_PORT + 2));
        let vips = [at(1).to_string(), at(FIRST_PORT + 3).to_string(), at(2).to_string()];
        let config = config(&[(&vips[0], ""), (&vips[1], &listen), (&vips[2], "")]);
        let busy = TcpListener::bind(at(FIRST_PORT + 5)).unwrap();
        let home = tempfile::tempdir().unwrap();
        let chosen = with_listeners(&config, &Running::default(), home.path()).unwrap().config;
        let listen: Vec<_> = chosen.deployments[0].services.iter().map(|service| service.tee.listen.unwrap()).collect();
        let ports = |first: u16, second: u16| [at(FIRST_PORT + first), at(FIRST_PORT + second)];
        assert_eq!(listen, [ports(1, 4), ports(0, 2), ports(6, 7)]);
        drop(busy);
        assert!(matches!(with_listeners(&chosen, &Running::default(), home.path()).unwrap().config, Cow::Borrowed(_)));
    }

    #[test]
    fn without_an_address_the_listeners_have_to_be_named() {
        let config = config(&[("203.0.113.10:80", "")]);
        let home = tempfile::tempdir().unwrap();
        let error = with_listeners(&config, &Running::default(), home.path()).unwrap_err().to_string();
        assert!(error.contains("listen = { blue = \"ADDRESS:17000\""), "{error}");
    }

    /// The listeners of the services of `given`, while nothing runs.
    fn listeners(given: &Config, home: &Path) -> Result<Vec<[SocketAddr; 2]>, Error> {
        let config = with_listeners(given, &Running::default(), home)?.config;
        Ok(config.deployments[0].services.iter().map(|service| service.tee.listen.unwrap()).collect())
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_was_chosen_before_is_taken_again_even_if_the_address_is_missing_unless_something_has_it() {
        let home = tempfile::tempdir().unwrap();
        let vip = "203.0.113.10:80";
        // No host has them.
        let missing = [at("192.0.2.77:17000"), at("192.0.2.77:17001")];
        let given = config(&[(vip, "")]);
        assert!(listeners(&given, home.path()).is_err(), "nothing can be chosen");
        let mut with = given.clone();
        with.deployments[0].services[0].tee.listen = Some(missing);
        let chosen = chosen_listeners(&given, &with);
        assert_eq!(chosen, Listeners::from([(at(vip), missing)]));
        assert_eq!(chosen_listeners(&with, &with), Listeners::new(), "they were named");
        crate::kept_listeners::keep(home.path(), &chosen).unwrap();
        assert_eq!(listeners(&given, home.path()).unwrap(), [missing]);
        // Another service names one of them.
        let named = "listen = { blue = \"192.0.2.77:17001\", green = \"192.0.2.77:17002\" }";
        assert!(listeners(&config(&[(vip, ""), ("203.0.113.10:81", named)]), home.path()).is_err());
        // Another program has one of them for good.
        let busy = TcpListener::bind((own(), 0)).unwrap().local_addr().unwrap();
        let _listener = TcpListener::bind(busy).unwrap();
        crate::kept_listeners::keep(home.path(), &Listeners::from([(at(vip), [busy, missing[0]])])).unwrap();
        assert!(listeners(&given, home.path()).is_err());
    }

    #[test]
    fn an_apply_waits_for_ports_that_a_controller_still_has_and_a_plan_does_not() {
        let home = tempfile::tempdir().unwrap();
        let listeners_of = [TcpListener::bind((own(), 0)).unwrap(), TcpListener::bind((own(), 0)).unwrap()];
        let kept = [0, 1].map(|nth: usize| listeners_of[nth].local_addr().unwrap());
        crate::kept_listeners::keep(home.path(), &Listeners::from([(at("203.0.113.10:80"), kept)])).unwrap();
        let given = config(&[("203.0.113.10:80", "")]);
        assert_ne!(listeners(&config(&[("203.0.113.10:80", "")]), home.path()).ok(), Some(vec![kept]));
        let (free, is_free) = std::sync::mpsc::channel();
        let waits = std::thread::spawn(move || {
            sleep(Duration::from_millis(300));
            free.send(()).unwrap();
            drop(listeners_of);
        });
        wait_for_ports(&given, home.path(), || Some(Running::default()));
        assert!(is_free.try_recv().is_ok(), "it was waited for");
        assert_eq!(listeners(&given, home.path()).unwrap(), [kept]);
        waits.join().unwrap();
    }

    #[test]
    fn a_new_service_does_not_get_what_a_later_one_has() {
        let home = tempfile::tempdir().unwrap();
        let ip = own();
        let [new, old] = [1, 2].map(|port| SocketAddr::new(ip, port).to_string());
        let first = listeners(&config(&[(&new, "")]), home.path()).unwrap()[0];
        crate::kept_listeners::keep(home.path(), &Listeners::from([(at(&old), first)])).unwrap();
        let both = listeners(&config(&[(&new, ""), (&old, "")]), home.path()).unwrap();
        assert_eq!(both[1], first);
        assert!(both[0].iter().all(|address| !first.contains(address)), "{both:?}");
    }

    #[test]
    fn listeners_stay_where_they_are_and_there_is_a_warning_if_this_host_has_only_another_address() {
        let home = tempfile::tempdir().unwrap();
        let vip = SocketAddr::new(own(), 1);
        let missing = [at("192.0.2.77:17000"), at("192.0.2.77:17001")];
        let others = [at("192.0.2.77:17002"), at("192.0.2.77:17003")];
        let kept = Listeners::from([(vip, missing), (at("203.0.113.10:80"), others)]);
        crate::kept_listeners::keep(home.path(), &kept).unwrap();
        let given = config(&[(&vip.to_string(), ""), ("203.0.113.10:80", "")]);
        let with = with_listeners(&given, &Running::default(), home.path()).unwrap();
        assert_eq!(chosen_listeners(&given, &with.config), kept);
        let [warning] = &with.warnings[..] else { panic!("only one of them could be elsewhere: {:?}", with.warnings) };
        assert!(warning.contains("stay at 192.0.2.77") && warning.contains(&vip.ip().to_string()), "{warning}");
    }
}
