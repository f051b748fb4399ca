//! A [`Config`] as the text of a file: what [`super::parse`] understands, the other way round.

mod controller;
mod lines;

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use bg_common::Colour;
use toml_writer::{ToTomlKey as _, ToTomlValue as _};

use controller::{write_checks, write_gates, write_health, write_notify, write_serve};
use lines::{array, field};

use super::model::{
    BackendSpec, Config, Deployment, DivideBy, Encap, Service, StickyPrefix, Tee, mode_name, protocol_name,
};

impl Config {
    /// The text of a file that says this and nothing else.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        write(&mut text, self).expect("writing into a string does not fail");
        text
    }
}

impl Config {
    /// The gates alone, as text; `None` if there are none.
    pub(crate) fn gates_to_toml(&self) -> Option<String> {
        let mut text = String::new();
        for deployment in &self.deployments {
            let key = deployment.name.as_str().to_toml_key();
            write_gates(&mut text, &key, deployment).expect("writing into a string does not fail");
        }
        (!text.is_empty()).then_some(text)
    }
}

fn write(text: &mut String, config: &Config) -> fmt::Result {
    if config.deployments.is_empty() {
        writeln!(text, "[deployments]")?;
    }
    for (index, deployment) in config.deployments.iter().enumerate() {
        if index > 0 {
            writeln!(text)?;
        }
        write_deployment(text, deployment)?;
    }
    if let Some(serve) = &config.serve {
        write_serve(text, serve)?;
    }
    config.notify.iter().try_for_each(|notify| write_notify(text, notify))
}

fn write_deployment(text: &mut String, deployment: &Deployment) -> fmt::Result {
    let key = deployment.name.as_str().to_toml_key();
    writeln!(text, "[deployments.{key}]")?;
    field(text, "initial", deployment.initial.name())?;
    field(text, "on_switch", deployment.on_switch.name())?;
    let duration = |duration: Duration| humantime::format_duration(duration).to_string();
    if let Some(timeout) = deployment.drain_timeout {
        field(text, "drain_timeout", &duration(timeout))?;
    }
    field(text, "tcp_idle_timeout", &duration(deployment.tcp_idle_timeout))?;
    field(text, "udp_idle_timeout", &duration(deployment.udp_idle_timeout))?;
    if deployment.sticky != DivideBy::default() {
        field(text, "sticky", deployment.sticky.name())?;
    }
    if deployment.sticky_prefix != StickyPrefix::default() {
        writeln!(text, "sticky_prefix = {}", deployment.sticky_prefix)?;
    }
    if !deployment.testers.is_empty() {
        array(text, "testers", deployment.testers.iter().map(|prefix| prefix.to_string().to_toml_value()))?;
    }
    write_checks(text, &key, deployment)?;
    for service in &deployment.services {
        writeln!(text, "\n[[deployments.{key}.services]]")?;
        write_service(text, service)?;
        if service.is_unchecked {
            field(text, "health", "none")?;
        }
        if let Some(health) = &service.health {
            writeln!(text, "\n[deployments.{key}.services.health]")?;
            write_health(text, health)?;
        }
    }
    Ok(())
}

fn write_service(text: &mut String, service: &Service) -> fmt::Result {
    field(text, "name", &service.name)?;
    field(text, "vip", &service.vip.to_string())?;
    field(text, "protocol", protocol_name(service.protocol))?;
    field(text, "mode", mode_name(service.mode))?;
    for colour in Colour::ALL {
        array(text, colour.name(), service.backends(colour).iter().map(backend))?;
    }
    if let Some(preview) = service.preview {
        field(text, "preview", &preview.to_string())?;
    }
    if service.is_mirrored {
        field(text, "mirror", "idle")?;
    }
    if service.encap.gue_port != Encap::default().gue_port {
        writeln!(text, "gue_port = {}", service.encap.gue_port)?;
    }
    if service.encap.prefixes().next().is_some() {
        array(text, "outer_source", service.encap.prefixes().map(|prefix| prefix.to_string().to_toml_value()))?;
    }
    write_tee(text, &service.tee)
}

fn write_tee(text: &mut String, tee: &Tee) -> fmt::Result {
    if let Some([blue, green]) = tee.listen.map(|listen| listen.map(|address| address.to_string().to_toml_value())) {
        writeln!(text, "listen = {{ blue = {blue}, green = {green} }}")?;
    }
    if tee.proxy_protocol {
        field(text, "proxy_protocol", "v2")?;
    }
    if tee.compare { writeln!(text, "compare = true") } else { Ok(()) }
}

fn backend(backend: &BackendSpec) -> String {
    let address = backend.address.to_string().to_toml_value();
    match backend.weight {
        1 => address,
        weight => format!("{{ address = {address}, weight = {weight} }}"),
    }
}
