//! Choosing the listeners of services in mode `tee` whose configuration names none.
//!
//! A service that runs keeps its listeners. For a new one, the choice depends on nothing but the configuration, the running state and this
//! host's addresses and sockets, so that an apply that is killed and called again chooses the same.

use std::{
    borrow::Cow,
    collections::HashSet,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
};

use bg_common::{Colour, Mode, Protocol};

use crate::{
    Error,
    config::{Config, Service},
    net::is_local,
    running::{Running, address_of, service_key},
};

/// The first port that is tried. It is below the ports that Linux gives to outgoing connections.
const FIRST_PORT: u16 = 17_000;

/// The configuration with listeners for every service in mode `tee`.
pub(crate) fn with_listeners<'a>(config: &'a Config, running: &Running) -> Result<Cow<'a, Config>, Error> {
    let services = || config.deployments.iter().flat_map(|deployment| &deployment.services);
    if !services().any(is_without) {
        return Ok(Cow::Borrowed(config));
    }
    let mut taken = taken(config, running);
    let mut config = config.clone();
    for deployment in &mut config.deployments {
        let name = &deployment.name;
        for service in deployment.services.iter_mut().filter(|service| is_without(service)) {
            let current = running.by_vip(&service_key(service.vip, service.protocol));
            // The rows of a service that moves to another deployment are written anew, while the old ones still exist.
            let stays = |index| running.name_of(index) == Some(name.as_str());
            let kept = current.filter(|current| stays(current.deployment)).and_then(|current| current.tee.listen);
            let listen = match kept {
                Some(listen) => listen,
                None => chosen(service, &taken)?,
            };
            taken.extend(listen);
            service.tee.listen = Some(listen);
        }
    }
    Ok(Cow::Owned(config))
}

fn is_without(service: &Service) -> bool {
    service.mode == Mode::Tee && service.tee.listen.is_none()
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
        let chosen = with_listeners(&config, &Running::default()).unwrap();
        let listen: Vec<_> = chosen.deployments[0].services.iter().map(|service| service.tee.listen.unwrap()).collect();
        let ports = |first: u16, second: u16| [at(FIRST_PORT + first), at(FIRST_PORT + second)];
        assert_eq!(listen, [ports(1, 4), ports(0, 2), ports(6, 7)]);
        drop(busy);
        assert!(matches!(with_listeners(&chosen, &Running::default()).unwrap(), Cow::Borrowed(_)));
    }

    #[test]
    fn without_an_address_the_listeners_have_to_be_named() {
        let config = config(&[("203.0.113.10:80", "")]);
        let error = with_listeners(&config, &Running::default()).unwrap_err().to_string();
        assert!(error.contains("listen = { blue = \"ADDRESS:17000\""), "{error}");
    }
}
