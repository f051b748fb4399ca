//! Choosing the listeners of services in mode `tee` whose configuration names none.
//!
//! A service keeps the listeners that it has, and a new one gets those that an earlier apply has chosen for its VIP. If this host does not have their address,
//! they are kept only if none can be chosen: it boots, and will have the address later. Else it has another address now, and listeners are chosen there.
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
    config::{Config, Service},
    kept_listeners::{Listeners, is_without_listeners, recall},
    net::is_local,
    running::{Running, address_of, service_key},
};

/// The first port that is tried. It is below the ports that Linux gives to outgoing connections.
const FIRST_PORT: u16 = 17_000;
/// How long a port may be busy that an earlier apply has chosen. The controller listens for five seconds more after an instance is gone.
const PATIENCE: Duration = Duration::from_secs(6);

/// The configuration with listeners for every service in mode `tee`. The directory `home` has those that were chosen before.
pub(crate) fn with_listeners<'a>(config: &'a Config, running: &Running, home: &Path) -> Result<Cow<'a, Config>, Error> {
    let services = || config.deployments.iter().flat_map(|deployment| &deployment.services);
    if !services().any(is_without_listeners) {
        return Ok(Cow::Borrowed(config));
    }
    let before = recall(home);
    let mut taken = taken(config, running);
    let end = Instant::now() + PATIENCE;
    // First those that stay: a new service must not get what a later one has.
    let mut kept = HashMap::new();
    for deployment in &config.deployments {
        for service in deployment.services.iter().filter(|service| is_without_listeners(service)) {
            let current = running.by_vip(&service_key(service.vip, service.protocol));
            // The rows of a service that moves to another deployment are written anew, while the old ones still exist.
            let stays = |index| running.name_of(index) == Some(deployment.name.as_str());
            let has = current.filter(|current| stays(current.deployment)).and_then(|current| current.tee.listen);
            let was_chosen = || before.get(&service.vip).copied().filter(|listen| may_be_taken(listen, &taken, end));
            if let Some(listen) = has.or_else(was_chosen) {
                taken.extend(listen);
                kept.insert(service.vip, listen);
            }
        }
    }
    let mut config = config.clone();
    for service in config.deployments.iter_mut().flat_map(|deployment| &mut deployment.services) {
        if !is_without_listeners(service) {
            continue;
        }
        let listen = match kept.get(&service.vip) {
            Some(listen) if listen.iter().all(|address| is_local(address.ip())) => *listen,
            Some(listen) => chosen(service, &taken).unwrap_or(*listen),
            None => chosen(service, &taken)?,
        };
        taken.extend(listen);
        service.tee.listen = Some(listen);
    }
    Ok(Cow::Owned(config))
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

/// Whether nothing else has them, at the latest at `end`. Their address may be missing: at boot, it comes later.
fn may_be_taken(listen: &[SocketAddr; 2], taken: &HashSet<SocketAddr>, end: Instant) -> bool {
    let is_busy = |address: &SocketAddr| {
        TcpListener::bind(address).is_err_and(|error| error.kind() != io::ErrorKind::AddrNotAvailable)
    };
    if listen.iter().any(|address| taken.contains(address)) {
        return false;
    }
    while listen.iter().any(is_busy) {
        if Instant::now() >= end {
            return false;
        }
        sleep(Duration::from_millis(50));
    }
    true
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
        let chosen = with_listeners(&config, &Running::default(), home.path()).unwrap();
        let listen: Vec<_> = chosen.deployments[0].services.iter().map(|service| service.tee.listen.unwrap()).collect();
        let ports = |first: u16, second: u16| [at(FIRST_PORT + first), at(FIRST_PORT + second)];
        assert_eq!(listen, [ports(1, 4), ports(0, 2), ports(6, 7)]);
        drop(busy);
        assert!(matches!(with_listeners(&chosen, &Running::default(), home.path()).unwrap(), Cow::Borrowed(_)));
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
        let config = with_listeners(given, &Running::default(), home)?;
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
    fn ports_that_a_controller_still_has_for_a_moment_are_waited_for() {
        let home = tempfile::tempdir().unwrap();
        let listeners_of = [TcpListener::bind((own(), 0)).unwrap(), TcpListener::bind((own(), 0)).unwrap()];
        let kept = [0, 1].map(|nth: usize| listeners_of[nth].local_addr().unwrap());
        crate::kept_listeners::keep(home.path(), &Listeners::from([(at("203.0.113.10:80"), kept)])).unwrap();
        let given = config(&[("203.0.113.10:80", "")]);
        let waits = std::thread::spawn(move || {
            sleep(Duration::from_millis(300));
            drop(listeners_of);
        });
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
    fn listeners_are_chosen_anew_if_this_host_has_another_address_for_good() {
        let home = tempfile::tempdir().unwrap();
        let vip = SocketAddr::new(own(), 1);
        let missing = [at("192.0.2.77:17000"), at("192.0.2.77:17001")];
        crate::kept_listeners::keep(home.path(), &Listeners::from([(vip, missing)])).unwrap();
        let chosen = listeners(&config(&[(&vip.to_string(), "")]), home.path()).unwrap()[0];
        assert!(chosen.iter().all(|address| address.ip() == vip.ip()), "{chosen:?}");
    }
}
