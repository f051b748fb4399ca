//! What concerns the controller alone.

use std::{
    fmt::{self, Write as _},
    path::Path,
    time::Duration,
};

use toml_writer::ToTomlValue as _;

use super::lines::{array, field};
use crate::config::model::{
    CheckKind, Deployment, Failover, Gate, GateKind, HealthCheck, MinHealthy, Notify, Serve, StatusRanges,
};

/// `health`, `failover` and `gates` of a deployment; `key` is its name as a key.
pub(super) fn write_checks(text: &mut String, key: &str, deployment: &Deployment) -> fmt::Result {
    if let Some(health) = &deployment.health {
        writeln!(text, "\n[deployments.{key}.health]")?;
        write_health(text, health)?;
    }
    if deployment.failover != Failover::default() {
        let Failover { to_idle, min_healthy, hold_off } = &deployment.failover;
        writeln!(text, "\n[deployments.{key}.failover]")?;
        field(text, "to_idle", if *to_idle { "auto" } else { "off" })?;
        match min_healthy {
            MinHealthy::Percent(_) => field(text, "min_healthy", &min_healthy.to_string())?,
            MinHealthy::Count(count) => writeln!(text, "min_healthy = {count}")?,
        }
        duration(text, "hold_off", *hold_off)?;
    }
    write_gates(text, key, deployment)
}

/// `gates` of a deployment; `key` is its name as a key.
pub(super) fn write_gates(text: &mut String, key: &str, deployment: &Deployment) -> fmt::Result {
    for gate in &deployment.gates {
        writeln!(text, "\n[[deployments.{key}.gates]]")?;
        write_gate(text, gate)?;
    }
    Ok(())
}

pub(super) fn write_health(text: &mut String, health: &HealthCheck) -> fmt::Result {
    field(text, "kind", health.kind.name())?;
    match &health.kind {
        CheckKind::Tcp => {}
        CheckKind::Http(http) => {
            field(text, "path", &http.path)?;
            optional(text, "host", http.host.as_deref())?;
            field(text, "expect_status", &http.expect_status.to_string())?;
            optional(text, "expect_body", http.expect_body.as_deref())?;
        }
        CheckKind::Grpc { service, tls } => {
            field(text, "service", service)?;
            writeln!(text, "tls = {tls}")?;
        }
        CheckKind::Exec { command } => write_command(text, command)?,
    }
    if let Some(port) = health.port {
        writeln!(text, "port = {port}")?;
    }
    duration(text, "interval", health.interval)?;
    duration(text, "timeout", health.timeout)?;
    writeln!(text, "rise = {}\nfall = {}", health.rise, health.fall)?;
    field(text, "all_down", health.all_down.name())?;
    health.slow_start.map_or(Ok(()), |time| duration(text, "slow_start", time))
}

fn write_gate(text: &mut String, gate: &Gate) -> fmt::Result {
    field(text, "when", gate.when.name())?;
    field(text, "kind", gate.kind.name())?;
    match &gate.kind {
        GateKind::Exec { command } => write_command(text, command)?,
        GateKind::Http { url, expect_status } => {
            field(text, "url", url)?;
            optional(text, "expect_status", expect_status.as_ref().map(StatusRanges::to_string).as_deref())?;
        }
        GateKind::Prometheus { url, query, max, min } => {
            field(text, "url", url)?;
            field(text, "query", query)?;
            for (key, bound) in [("max", max), ("min", min)] {
                if let Some(bound) = bound {
                    writeln!(text, "{key} = {}", bound.number().to_toml_value())?;
                }
            }
        }
    }
    duration(text, "interval", gate.interval)?;
    duration(text, "timeout", gate.timeout)
}

pub(super) fn write_serve(text: &mut String, serve: &Serve) -> fmt::Result {
    writeln!(text, "\n[serve]")?;
    field(text, "socket", &path(&serve.socket))?;
    optional(text, "socket_group", serve.socket_group.as_deref())?;
    optional(text, "listen", serve.listen.map(|address| address.to_string()).as_deref())?;
    optional(text, "tokens", serve.tokens.as_deref().map(path).as_deref())?;
    if let Some(tls) = &serve.tls {
        writeln!(text, "\n[serve.tls]")?;
        field(text, "certificate", &path(&tls.certificate))?;
        field(text, "key", &path(&tls.key))?;
        optional(text, "client_ca", tls.client_ca.as_deref().map(path).as_deref())?;
    }
    Ok(())
}

pub(super) fn write_notify(text: &mut String, notify: &Notify) -> fmt::Result {
    writeln!(text, "\n[[notify]]")?;
    field(text, "url", &notify.url)?;
    array(text, "events", notify.events.iter().map(|event| event.name().to_toml_value()))
}

fn write_command(text: &mut String, command: &[String]) -> fmt::Result {
    array(text, "command", command.iter().map(|word| word.to_toml_value()))
}

fn optional(text: &mut String, key: &str, value: Option<&str>) -> fmt::Result {
    value.map_or(Ok(()), |value| field(text, key, value))
}

fn duration(text: &mut String, key: &str, duration: Duration) -> fmt::Result {
    field(text, key, &humantime::format_duration(duration).to_string())
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
