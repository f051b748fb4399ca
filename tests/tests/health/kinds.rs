//! Each kind of check, and each way to die.

use crate::{
    FALL, INTERVAL, answering, at, at_once, back, detected,
    grpc::{self, Grpc},
    health, named, nginx, silent, times,
};
use anyhow::{Context as _, Result, anyhow, ensure};
use bg_tests::{
    Answers, Controller, Fabric, HTTP_PORT, Lab, POSTGRES, Postgres, Ready, Scripted,
    address::{NEIGHBOUR_V4, VIP_V4},
};
use std::{
    net::SocketAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

const SCRIPTED: u16 = 8081;
const GRPC: u16 = 50_051;
const EXEC: u16 = 8082;

/// Two deployments that share backends, and services with checks of each kind.
fn config(lab: &Lab) -> String {
    let dir = lab.sandbox.dir().display().to_string();
    let times = times();
    let service = |deployment: &str, name: &str, vip: SocketAddr, port: u16, check: &str| {
        let colour = |colour: &str| {
            let of_colour = lab.backends.iter().filter(|backend| backend.colour.name() == colour);
            of_colour.map(|backend| format!("\"{}\"", at(backend, port))).collect::<Vec<_>>().join(", ")
        };
        format!(
            "[[deployments.{deployment}.services]]\nname = \"{name}\"\nvip = \"{vip}\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
             blue = [{}]\ngreen = [{}]\nhealth = {{ {check}, {times} }}\n",
            colour("blue"),
            colour("green")
        )
    };
    let shop = |port| SocketAddr::new(VIP_V4, port);
    let exec = format!(
        "kind = \"exec\", command = [\"sh\", \"-c\", 'case \"$(cat {dir}/$BGCTL_ADDRESS 2>/dev/null)\" in fail) exit 1;; hang) sleep 60;; esac']"
    );
    [
        service("mail", "web", SocketAddr::new(NEIGHBOUR_V4, 80), HTTP_PORT, "kind = \"tcp\""),
        service(
            "shop",
            "web",
            shop(80),
            HTTP_PORT,
            "kind = \"http\", path = \"/\", host = \"shop\", expect_body = \"blue|green\"",
        ),
        service(
            "shop",
            "odd",
            shop(81),
            SCRIPTED,
            "kind = \"http\", expect_status = \"200\", expect_body = \"^well$\"",
        ),
        service("shop", "db", shop(POSTGRES), POSTGRES, "kind = \"tcp\""),
        service("shop", "rpc", shop(GRPC), GRPC, &format!("kind = \"grpc\", service = \"{}\"", grpc::SERVICE)),
        service("shop", "cmd", shop(EXEC), EXEC, &exec),
    ]
    .concat()
}

fn ready() -> Result<Ready> {
    let lab = Lab::wire(Fabric::Switch)?;
    let config = config(&lab);
    Ready::with_others(lab, "native", &config)
}

#[test]
fn each_kind_of_check_sees_a_backend_die_and_return() -> Result<()> {
    let ready = &ready()?;
    let mut web = ready.lab.nginxes()?;
    let blue1 = named(ready, "blue1")?;
    let odd = ["blue1", "blue2", "green1"].map(|name| {
        let backend = named(ready, name)?;
        anyhow::Ok((at(backend, SCRIPTED), Scripted::start(backend, at(backend, SCRIPTED))?))
    });
    let odd = odd.into_iter().collect::<Result<Vec<_>>>()?;
    let db = Postgres::start(&ready.lab, blue1)?;
    let rpc = Grpc::start(blue1, at(blue1, GRPC))?;
    let controller = Controller::start(&ready.bgctl)?;
    let maps = health(ready)?;
    let soon = INTERVAL * FALL + Duration::from_secs(3);
    for backend in &ready.lab.backends {
        maps.wait(at(backend, HTTP_PORT), "up", soon)?;
        maps.wait(at(backend, EXEC), "up", soon)?;
    }
    for address in odd.iter().map(|(address, _)| *address).chain([at(blue1, POSTGRES), at(blue1, GRPC)]) {
        maps.wait(address, "up", soon)?;
    }
    // Those where nothing listens.
    maps.wait(at(named(ready, "blue2")?, POSTGRES), "down", soon)?;

    let [first, second, third] = <[_; 3]>::try_from(odd).map_err(|_| anyhow!("three servers"))?;
    // The others serve until all scenarios have ended.
    let killed = web.remove(0);
    thread::scope(|scope| {
        let scenarios = [
            scope.spawn(move || killed_and_started(ready, killed)),
            scope.spawn(|| filtered(ready)),
            scope.spawn(|| gone(ready)),
            scope.spawn(move || answers(ready, "a 500", &first, Answers::Error, at_once())),
            scope.spawn(move || {
                answers(ready, "another body", &second, Answers::OtherBody, at_once())?;
                second.1.answer(Answers::Never);
                detected(&health(ready)?, "no answer", second.0, "down", Instant::now(), silent())
            }),
            scope.spawn(move || answers(ready, "an answer byte by byte", &third, Answers::Dripping, silent())),
            scope.spawn(move || database(ready, db)),
            scope.spawn(move || calls(ready, rpc)),
            scope.spawn(|| commands(ready)),
        ];
        let ended = scenarios.map(|scenario| scenario.join().map_err(|_| anyhow!("a scenario panicked"))?);
        ended.into_iter().collect::<Result<Vec<()>>>()
    })?;
    let log = controller.log()?;
    ensure!(log.contains("answered with status 500") && log.contains("a backend is down"), "{log}");
    ensure!(!log.contains("checks were up to"), "checks were late: {log}");
    let ended = controller.end(libc::SIGTERM)?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}

/// nginx is killed: two services of two deployments see it, one by HTTP and one by TCP.
fn killed_and_started(ready: &Ready, web: bg_tests::Nginx) -> Result<()> {
    let (maps, backend) = (health(ready)?, named(ready, "blue1")?);
    let address = at(backend, HTTP_PORT);
    ensure!(maps.of(address)?.len() == 2, "of both deployments");
    let vips = [VIP_V4, NEIGHBOUR_V4].map(|vip| SocketAddr::new(vip, 80));
    ensure!(answering(ready, vips[0], 40)?.len() == 2, "both answer");
    let begin = Instant::now();
    drop(web);
    detected(&maps, "killed", address, "down", begin, at_once())?;
    for vip in vips {
        // Connections were opened to it until just now, but no new one is.
        let names = answering(ready, vip, 40)?;
        ensure!(names == ["blue blue2"], "{vip}: {names:?}");
    }
    let status = ready.bgctl.deployment("shop")?;
    let web_of_shop = status["services"].as_array().into_iter().flatten().find(|service| service["name"] == "web");
    let told = &web_of_shop.context("no such service")?["blue"]["backends"][0];
    ensure!(told["health"] == "down" && told["weight"] == 1, "{told}");
    let _nginx = nginx(ready, backend)?;
    detected(&maps, "started", address, "up", Instant::now(), back(1))?;
    ensure!(answering(ready, vips[0], 40)?.len() == 2, "both answer again");
    Ok(())
}

/// A firewall drops what comes to the port.
fn filtered(ready: &Ready) -> Result<()> {
    let (maps, backend) = (health(ready)?, named(ready, "green1")?);
    let rule = "add rule inet filtered input tcp dport";
    for line in ["add table inet filtered", "add chain inet filtered input { type filter hook input priority 0 ; }"] {
        backend.namespace.run(&format!("nft {line}"))?;
    }
    let begin = Instant::now();
    backend.namespace.run(&format!("nft {rule} {HTTP_PORT} drop"))?;
    detected(&maps, "port filtered", at(backend, HTTP_PORT), "down", begin, silent())?;
    backend.namespace.run("nft delete table inet filtered")?;
    detected(&maps, "filter removed", at(backend, HTTP_PORT), "up", Instant::now(), back(1))
}

/// The machine is gone from the network.
fn gone(ready: &Ready) -> Result<()> {
    let (maps, backend) = (health(ready)?, named(ready, "green2")?);
    let begin = Instant::now();
    backend.namespace.ip("link set eth0 down")?;
    detected(&maps, "host gone", at(backend, HTTP_PORT), "down", begin, silent())?;
    backend.namespace.ip("link set eth0 up")?;
    // Until the link is there, and the neighbour is asked for again.
    let patience = back(1) + Duration::from_secs(3);
    detected(&maps, "host back", at(backend, HTTP_PORT), "up", Instant::now(), patience)
}

fn answers(
    ready: &Ready,
    what: &str,
    server: &(SocketAddr, Scripted),
    answers: Answers,
    bound: Duration,
) -> Result<()> {
    let (maps, (address, server)) = (health(ready)?, server);
    let begin = Instant::now();
    server.answer(answers);
    detected(&maps, what, *address, "down", begin, bound)?;
    server.answer(Answers::Well);
    detected(&maps, "answers well again", *address, "up", Instant::now(), back(1))
}

fn database(ready: &Ready, db: Postgres) -> Result<()> {
    let (maps, backend) = (health(ready)?, named(ready, "blue1")?);
    let begin = Instant::now();
    drop(db);
    detected(&maps, "PostgreSQL killed", at(backend, POSTGRES), "down", begin, at_once())
}

fn calls(ready: &Ready, rpc: Grpc) -> Result<()> {
    let (maps, backend) = (health(ready)?, named(ready, "blue1")?);
    let address = at(backend, GRPC);
    let begin = Instant::now();
    rpc.set_serving(false);
    detected(&maps, "gRPC not serving", address, "down", begin, at_once())?;
    rpc.set_serving(true);
    detected(&maps, "gRPC serving", address, "up", Instant::now(), back(1))?;
    let begin = Instant::now();
    drop(rpc);
    detected(&maps, "gRPC server gone", address, "down", begin, at_once() + Duration::from_millis(100))?;
    let _rpc = Grpc::start(backend, address)?;
    detected(&maps, "gRPC server back", address, "up", Instant::now(), back(2))
}

fn commands(ready: &Ready) -> Result<()> {
    let (maps, backend) = (health(ready)?, named(ready, "blue2")?);
    let (address, file) = (at(backend, EXEC), ready.lab.sandbox.dir().join(backend.addresses[0].to_string()));
    let say = |word: &str| std::fs::write::<&Path, _>(&file, word);
    let begin = Instant::now();
    say("fail")?;
    detected(&maps, "command fails", address, "down", begin, at_once())?;
    say("")?;
    detected(&maps, "command passes", address, "up", Instant::now(), back(1))?;
    let begin = Instant::now();
    say("hang")?;
    detected(&maps, "command hangs", address, "down", begin, silent())
}
