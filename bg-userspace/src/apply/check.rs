//! Checks whether the maps can represent a configuration. The parser has similar checks, but an embedding program
//! may build a configuration without it.

use std::{collections::HashSet, net::SocketAddr};

use bg_common::{Colour, Family, MAX_DEPLOYMENTS, MAX_TESTERS, Mode, Protocol};

use crate::{
    Error, Room,
    config::{Config, Service, endpoint_problem, mode_name, prefix_problem, source_problem},
    maglev,
    running::{UNSETTLED, service_key},
    sizes::Sizes,
};

/// Refuses a configuration that the maps cannot represent, or that would not fit into an empty instance of these sizes.
pub(super) fn check(config: &Config, sizes: &Sizes) -> Result<(), Error> {
    let (mut names, mut keys) = (HashSet::new(), HashSet::new());
    let (mut services, mut backends, mut entries, mut testers) = (0, 0, 0, 0);
    for deployment in &config.deployments {
        name(&deployment.name, "deployment")?;
        if !names.insert(&deployment.name) {
            return refuse(format!("two deployments are called \"{}\": rename one", deployment.name));
        }
        testers += deployment.testers.len();
        for prefix in &deployment.testers {
            if let Some(expected) = prefix_problem(*prefix) {
                return refuse(format!("deployment \"{}\": bad tester {prefix}, expected {expected}", deployment.name));
            }
        }
        for service in &deployment.services {
            name(&service.name, "service")?;
            for address in std::iter::once(service.vip).chain(service.preview).chain(listeners(service)?) {
                usable(address, &service.name)?;
                if !keys.insert(service_key(address, service.protocol)) {
                    return refuse(format!(
                        "{address} is the address of two services, or twice that of one: as VIP, preview address or listener"
                    ));
                }
            }
            services += 1;
            if service.is_mirrored && service.mode.is_direct() {
                let (name, mode) = (&service.name, mode_name(service.mode));
                return refuse(format!("service \"{name}\": clients would get the answers of a mirror in mode {mode}"));
            }
            for (prefix, is_v6) in service.encap.outer_source.into_iter().zip([false, true]) {
                if let Some(prefix) =
                    prefix.filter(|prefix| prefix.addr.is_ipv6() != is_v6 || source_problem(*prefix).is_some())
                {
                    return refuse(format!("service \"{}\": bad outer source {prefix}", service.name));
                }
            }
            for colour in Colour::ALL {
                // A colour of a teed service has a listener too, and its table leads to this one alone.
                let is_teed = service.mode == Mode::Tee;
                backends += service.backends(colour).len() + usize::from(is_teed);
                let own = table_len(service, colour)?;
                entries += if is_teed { maglev::table_len(&[1]) } else { own } as usize;
            }
        }
    }
    for service in config.deployments.iter().flat_map(|deployment| &deployment.services) {
        let is_vip = |address: &SocketAddr| keys.contains(&service_key(*address, service.protocol));
        let mut addresses = service.backends.iter().flatten().map(|backend| backend.address);
        if let Some(address) = addresses.find(is_vip) {
            let name = &service.name;
            return refuse(format!(
                "service \"{name}\": backend {address} is a VIP, preview address or listener: a packet is rewritten only once, so it would \
                 never be answered; give it the address of a server"
            ));
        }
    }
    for (what, needed, capacity) in [
        (Room::Deployments, config.deployments.len(), MAX_DEPLOYMENTS),
        (Room::Services, services, sizes.services),
        (Room::Backends, backends, sizes.backends),
        (Room::TableEntries, entries, 2 * sizes.maglev_rows),
        (Room::Testers, testers, MAX_TESTERS),
    ] {
        if needed > capacity as usize {
            return Err(Error::NoRoom { what, needed, free: capacity as usize, capacity: capacity as usize });
        }
    }
    Ok(())
}

/// The listeners that the configuration names.
fn listeners(service: &Service) -> Result<impl Iterator<Item = SocketAddr>, Error> {
    let listen = service.tee.listen.filter(|_| service.mode == Mode::Tee);
    let name = &service.name;
    if service.mode != Mode::Tee {
        return Ok(listen.into_iter().flatten());
    }
    if service.protocol != Protocol::Tcp {
        return refuse(format!("service \"{name}\": mode \"tee\" is for TCP; mirror = \"idle\" copies datagrams"));
    }
    let vip = service.vip;
    if listen.into_iter().flatten().any(|address| Family::of(address.ip()) != Family::of(vip.ip())) {
        return refuse(format!("service \"{name}\": a listener and the VIP {vip} are of different families"));
    }
    Ok(listen.into_iter().flatten())
}

fn table_len(service: &Service, colour: Colour) -> Result<u32, Error> {
    let who = format!("service \"{}\", {}", service.name, colour.name());
    let mut seen = HashSet::new();
    let mut weights = Vec::new();
    for backend in service.backends(colour) {
        let address = backend.address;
        usable(address, &service.name)?;
        if !service.mode.is_tunnel() && Family::of(address.ip()) != Family::of(service.vip.ip()) {
            return refuse(format!("{who}: {address} and the VIP {} are of different families", service.vip));
        }
        if service.mode.is_direct() && address.port() != service.vip.port() {
            let mode = mode_name(service.mode);
            return refuse(format!(
                "{who}: {address} has another port than the VIP {}, which mode {mode} keeps",
                service.vip
            ));
        }
        if backend.weight == UNSETTLED {
            return refuse(format!("{who}: {address} has the weight {UNSETTLED}, which is reserved"));
        }
        if !seen.insert(address) {
            return refuse(format!("{who}: {address} occurs twice; double its weight instead"));
        }
        weights.push(backend.weight);
    }
    match maglev::table_len(&weights) {
        0 if weights.is_empty() => refuse(format!("{who} is empty: give it a backend with a positive weight")),
        0 => refuse(format!("{who}: all backends have weight 0: give one a positive weight")),
        len => Ok(len),
    }
}

/// Refuses an address to which no packets can be sent.
fn usable(address: SocketAddr, service: &str) -> Result<(), Error> {
    match endpoint_problem(address) {
        Some(expected) => refuse(format!("service \"{service}\": bad address {address}, expected {expected}")),
        None => Ok(()),
    }
}

fn name(name: &str, what: &str) -> Result<(), Error> {
    if (1..=64).contains(&name.len()) && !name.contains(char::is_control) {
        return Ok(());
    }
    refuse(format!("a {what} is called \"{name}\": a name has 1 to 64 bytes without control characters"))
}

fn refuse<T>(what: String) -> Result<T, Error> {
    Err(Error::Unrepresentable { what })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// What is refused of two services after a change that the parser would not have let through.
    fn refused(change: impl FnOnce(&mut Config)) -> String {
        let service = |deployment: &str, port: u16| {
            format!(
                "[[deployments.{deployment}.services]]\nvip = \"203.0.113.10:{port}\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
                 blue = [\"10.0.0.1:{port}\"]\ngreen = [\"10.0.0.2:{port}\"]\n"
            )
        };
        let text = service("mail", 25) + &service("shop", 443);
        let mut config = crate::config::parse(Path::new("x"), &text).unwrap();
        let sizes = Sizes::new(1, 2, 4);
        check(&config, &sizes).unwrap();
        change(&mut config);
        check(&config, &sizes).map_or_else(|error| error.to_string(), |()| "nothing".to_owned())
    }

    #[test]
    fn what_the_parser_refuses_is_refused_of_an_embedding_program() {
        let vip = |config: &mut Config, deployment: usize, vip: &str| {
            config.deployments[deployment].services[0].vip = vip.parse().unwrap();
        };
        let backend = |config: &mut Config, address: &str, weight: u32| {
            let backends = &mut config.deployments[0].services[0].backends[0];
            (backends[0].address, backends[0].weight) = (address.parse().unwrap(), weight);
        };
        let tester = |config: &mut Config| {
            let prefix = crate::config::Prefix { addr: "::ffff:10.0.0.0".parse().unwrap(), len: 104 };
            config.deployments[1].testers.push(prefix);
        };
        let source = |config: &mut Config| {
            let service = &mut config.deployments[0].services[0];
            let anywhere = crate::config::Prefix { addr: "0.0.0.0".parse().unwrap(), len: 0 };
            (service.mode, service.encap.outer_source[0]) = (Mode::Ipip, Some(anywhere));
        };
        assert!(refused(source).contains("bad outer source 0.0.0.0/0"));
        assert!(refused(tester).contains("in its own notation, \"10.0.0.0/8\""));
        assert!(refused(|config| vip(config, 1, "[::ffff:203.0.113.9]:443")).contains("\"203.0.113.9:443\""));
        assert!(refused(|config| vip(config, 1, "224.0.0.1:443")).contains("multicast"));
        assert!(refused(|config| vip(config, 1, "203.0.113.10:25")).contains("two services"));
        assert!(refused(|config| backend(config, "203.0.113.10:443", 1)).contains("would never be answered"));
        assert!(refused(|config| backend(config, "10.0.0.1:0", 1)).contains("a port from 1 to 65535"));
        assert!(refused(|config| backend(config, "10.0.0.1:25", 0)).contains("all backends have weight 0"));
        assert!(refused(|config| config.deployments[0].services[0].backends[0].clear()).contains("is empty"));
        let more = |config: &mut Config| {
            let address = "10.0.0.3:25".parse().unwrap();
            config.deployments[0].services[0].backends[0].push(crate::config::BackendSpec { address, weight: 1 });
        };
        let text = refused(more);
        assert!(text.contains("no room for 5 more backends: 4 of 4") && text.contains("larger --backends"), "{text}");
        assert!(
            refused(|config| config.deployments[1].name = "\u{1b}[2J".to_owned())
                .contains("without control characters")
        );
    }
}
