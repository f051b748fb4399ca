//! Choosing the listeners of services in mode `tee` whose configuration names none.
//!
//! A service that runs keeps its listeners. A new one gets those that an earlier apply has chosen for its VIP, also if this host does not have the address: it boots, and will have it.
//! Else the choice depends on nothing but the configuration, the running state and this host's addresses and sockets, so that an apply that is killed and called again chooses the same.

use std::{
    borrow::Cow,
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
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

/// The configuration with listeners for every service in mode `tee`. The directory `home` has those that were chosen before.
pub(crate) fn with_listeners<'a>(config: &'a Config, running: &Running, home: &Path) -> Result<Cow<'a, Config>, Error> {
    let services = || config.deployments.iter().flat_map(|deployment| &deployment.services);
    if !services().any(is_without_listeners) {
        return Ok(Cow::Borrowed(config));
    }
    let before = recall(home);
    let mut taken = taken(config, running);
    let mut config = config.clone();
    for deployment in &mut config.deployments {
        let name = &deployment.name;
        for service in deployment.services.iter_mut().filter(|service| is_without_listeners(service)) {
            let current = running.by_vip(&service_key(service.vip, service.protocol));
            // The rows of a service that moves to another deployment are written anew, while the old ones still exist.
            let stays = |index| running.name_of(index) == Some(name.as_str());
            let kept = current.filter(|current| stays(current.deployment)).and_then(|current| current.tee.listen);
            let was_chosen = || before.get(&service.vip).copied().filter(|listen| may_be_taken(listen, &taken));
            let listen = match kept.or_else(was_chosen) {
                Some(listen) => listen,
                None => chosen(service, &taken)?,
            };
            taken.extend(listen);
            service.tee.listen = Some(listen);
        }
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

/// Whether nothing else has them. Their address may be missing: at boot, it comes later.
fn may_be_taken(listen: &[SocketAddr; 2], taken: &HashSet<SocketAddr>) -> bool {
    listen.iter().all(|address| {
        let is_free = match TcpListener::bind(address) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::AddrNotAvailable,
        };
        is_free && !taken.contains(address)
    })
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

    #[test]
    fn what_was_chosen_before_is_taken_again_even_if_the_address_is_missing_unless_something_has_it() {
        let home = tempfile::tempdir().unwrap();
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let vip = "203.0.113.10:80";
        let listen_of = |config: &Config| {
            let config = with_listeners(config, &Running::default(), home.path())?.into_owned();
            Ok::<_, Error>(config.deployments[0].services[0].tee.listen.unwrap())
        };
        // No host has them.
        let missing = [at("192.0.2.77:17000"), at("192.0.2.77:17001")];
        let given = config(&[(vip, "")]);
        assert!(listen_of(&given).is_err(), "nothing can be chosen");
        let mut with = given.clone();
        with.deployments[0].services[0].tee.listen = Some(missing);
        let chosen = chosen_listeners(&given, &with);
        assert_eq!(chosen, Listeners::from([(at(vip), missing)]));
        assert_eq!(chosen_listeners(&with, &with), Listeners::new(), "they were named");
        crate::kept_listeners::keep(home.path(), &chosen).unwrap();
        assert_eq!(listen_of(&given).unwrap(), missing);
        // Another service names one of them.
        let named = "listen = { blue = \"192.0.2.77:17001\", green = \"192.0.2.77:17002\" }";
        assert!(listen_of(&config(&[(vip, ""), ("203.0.113.10:81", named)])).is_err());
        // Another program has one of them.
        let busy = TcpListener::bind((own(), 0)).unwrap().local_addr().unwrap();
        let listener = TcpListener::bind(busy).unwrap();
        let of_busy = Listeners::from([(at(vip), [busy, missing[0]])]);
        crate::kept_listeners::keep(home.path(), &of_busy).unwrap();
        assert!(listen_of(&given).is_err());
        drop(listener);
        assert_eq!(listen_of(&given).unwrap(), [busy, missing[0]]);
    }
}
