//! Checks over TLS, of nginx, and of a gRPC server behind it. Their certificates are signed by nobody, as those of backends often are.

use crate::{
    at,
    grpc::{self, Grpc},
    health, named, times,
};
use anyhow::{Context as _, Result, ensure};
use bg_tests::{Backend, Controller, Fabric, HTTP_PORT, Lab, Process, Ready, address::VIP_V4, run};
use std::{
    fs,
    net::{SocketAddr, TcpStream},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

const HTTPS: u16 = 8443;
const GRPCS: u16 = 8444;
const GRPC: u16 = 50_051;
/// The name that the check asks for. Any other gets an error.
const NAME: &str = "shop.example";

/// nginx with TLS on a backend: 200 if both TLS and the request name [`NAME`], and what the gRPC server says on another port.
fn nginx(ready: &Ready, backend: &Backend) -> Result<Process> {
    let dir = ready.lab.sandbox.dir().join("nginx-tls");
    fs::create_dir_all(&dir)?;
    let shown = dir.display();
    run(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {shown}/key.pem -out {shown}/cert.pem -days 2 -subj /CN=other.example"
    ))?;
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {shown}/{name};"))
        .concat();
    let [https, grpcs, grpc] = [HTTPS, GRPCS, GRPC].map(|port| at(backend, port));
    let config = format!(
        "daemon off; worker_processes 1; pid {shown}/pid; error_log {shown}/error.log; events {{}}\n\
         http {{ access_log off; {temporary} ssl_certificate {shown}/cert.pem; ssl_certificate_key {shown}/key.pem;\n\
         server {{ listen {https} ssl default_server; server_name _; return 421; }}\n\
         server {{ listen {https} ssl; server_name {NAME}; location / {{ if ($ssl_server_name != {NAME}) {{ return 421; }} return 200 \"well\"; }} }}\n\
         server {{ listen {grpcs} ssl http2; location / {{ grpc_pass grpc://{grpc}; }} }} }}\n"
    );
    fs::write(dir.join("nginx.conf"), config)?;
    let mut command = backend.namespace.command("nginx");
    command.arg("-e").arg(dir.join("error.log")).arg("-p").arg(&dir).arg("-c").arg(dir.join("nginx.conf"));
    let process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
    let end = Instant::now() + Duration::from_secs(10);
    while backend.namespace.enter(|| TcpStream::connect(https))?.is_err() {
        let log = || fs::read_to_string(dir.join("error.log")).unwrap_or_default();
        ensure!(Instant::now() < end, "nginx does not serve: {}", log());
        thread::sleep(Duration::from_millis(10));
    }
    Ok(process)
}

#[test]
fn servers_with_tls_are_seen_to_die_and_return() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let service = |name: &str, vip: u16, port: u16, check: &str| {
        let of = |nth: usize| at(&lab.backends[nth], port);
        format!(
            "[[deployments.shop.services]]\nname = \"{name}\"\nvip = \"{}\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
             blue = [\"{}\"]\ngreen = [\"{}\"]\nhealth = {{ {check}, {} }}\n",
            SocketAddr::new(VIP_V4, vip),
            of(0),
            of(2),
            times()
        )
    };
    let config = service("web", 443, HTTPS, &format!("kind = \"https\", host = \"{NAME}\", expect_body = \"^well$\""))
        + &service("rpc", 444, GRPCS, &format!("kind = \"grpc\", tls = true, service = \"{}\"", grpc::SERVICE))
        + &service("plain", 445, HTTP_PORT, "kind = \"https\"");
    let ready = Ready::with_others(lab, "native", &config)?;
    let backend = named(&ready, "blue1")?;
    // It answers, but without TLS.
    let _plain = crate::nginx(&ready, backend)?;
    let rpc = Grpc::start(backend, at(backend, GRPC))?;
    let server = nginx(&ready, backend)?;
    let controller = Controller::start(&ready.bgctl)?;
    let maps = health(&ready)?;
    let [web, calls, plain] = [HTTPS, GRPCS, HTTP_PORT].map(|port| at(backend, port));
    let soon = Duration::from_secs(10);
    maps.wait(web, "up", soon)?;
    maps.wait(calls, "up", soon)?;
    maps.wait(plain, "down", soon)?;

    rpc.set_serving(false);
    maps.wait(calls, "down", soon).context("gRPC over TLS not serving")?;
    rpc.set_serving(true);
    maps.wait(calls, "up", soon).context("gRPC over TLS serving")?;
    ensure!(maps.of(web)?.iter().all(|health| *health == "up"), "the other service of the same server");
    drop(server);
    maps.wait(web, "down", soon).context("nginx with TLS killed")?;
    maps.wait(calls, "down", soon)?;
    let _server = nginx(&ready, backend)?;
    maps.wait(web, "up", soon).context("nginx with TLS started")?;
    maps.wait(calls, "up", soon)?;
    let log = controller.log()?;
    let told = log.lines().find(|line| line.contains("a backend is down") && line.contains(&plain.to_string()));
    ensure!(told.is_some_and(|line| line.contains("TLS")), "the log says why: {log}");
    Ok(())
}
