//! What is known of backends outlives an apply, a reload, and the controller.

use crate::{at, at_once, detected, health, named, nginx, times};
use anyhow::{Result, ensure};
use bg_tests::{Controller, Fabric, HTTP_PORT, Lab, Ready, address::VIP_V4, config::http_vip};
use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

/// The web service with these weights of the blue backends, and a second one with another check.
fn config(lab: &Lab, weights: [u32; 2], other: &str) -> String {
    let [blue1, blue2, green1, green2] = [0, 1, 2, 3].map(|nth| at(&lab.backends[nth], HTTP_PORT));
    let service = |name: &str, vip: SocketAddr, [one, two]: [u32; 2]| {
        format!(
            "[[deployments.shop.services]]\nname = \"{name}\"\nvip = \"{vip}\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
             blue = [{{ address = \"{blue1}\", weight = {one} }}, {{ address = \"{blue2}\", weight = {two} }}]\n\
             green = [\"{green1}\", \"{green2}\"]\n"
        )
    };
    let times = times();
    format!("[deployments.shop.health]\nkind = \"tcp\"\n{}\n", times.replace(", ", "\n"))
        + &service("web", http_vip(VIP_V4), weights)
        + &service("more", SocketAddr::new(VIP_V4, 81), [1, 1])
        + &format!("health = {{ {other}, {times} }}\n")
}

#[test]
fn an_apply_a_reload_and_the_death_of_the_controller_forget_nothing() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let text = config(&lab, [1, 1], "kind = \"tcp\"");
    let ready = Ready::with_others(lab, "native", &text)?;
    let mut web = ready.lab.nginxes()?;
    let mut controller = Controller::start(&ready.bgctl)?;
    let maps = health(&ready)?;
    for backend in &ready.lab.backends {
        maps.wait(at(backend, HTTP_PORT), "up", Duration::from_secs(5))?;
    }
    let (dead, lives) = (named(&ready, "blue1")?, named(&ready, "green2")?);
    let (down, up) = (at(dead, HTTP_PORT), at(lives, HTTP_PORT));
    let begin = Instant::now();
    drop(web.remove(0));
    detected(&maps, "killed", down, "down", begin, at_once())?;
    /// What both have been since, if they were ever anything else than `down` and `up`.
    fn others(maps: &bg_tests::BackendHealth, [down, up]: [SocketAddr; 2], time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let found = [maps.of(down)?, maps.of(up)?];
            ensure!(found == [["down"; 2], ["up"; 2]], "{found:?}");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
    let watched = [down, up];

    let no_plan = ready.bgctl.try_run(&["plan", "-c", &ready.bgctl.config().display().to_string()])?;
    ensure!(no_plan.status.code() == Some(0), "health is no difference");
    ready.bgctl.apply(&config(&ready.lab, [3, 2], "kind = \"tcp\""))?;
    ensure!(crate::answering(&ready, http_vip(VIP_V4), 30)? == ["blue blue2"], "after the apply");
    others(&maps, watched, Duration::from_millis(200))?;

    // One service is checked in another way from now on, and the other one as before.
    ready.bgctl.write_config(&config(&ready.lab, [3, 2], "kind = \"http\""))?;
    controller.reload()?;
    others(&maps, watched, Duration::from_millis(600))?;

    controller.end(libc::SIGKILL)?;
    others(&maps, watched, Duration::from_millis(100))?;
    let controller = Controller::start(&ready.bgctl)?;
    others(&maps, watched, Duration::from_secs(2))?;
    ensure!(crate::answering(&ready, http_vip(VIP_V4), 30)? == ["blue blue2"], "after the restart");
    let log = controller.log()?;
    ensure!(!log.contains("a backend is"), "nothing has changed: {log}");

    // What was forgotten by hand is told again.
    ready.bgctl.run(&["apply", "--forget-health", "-c", &ready.bgctl.config().display().to_string()])?;
    maps.wait(down, "down", Duration::from_secs(15))?;

    let _nginx = nginx(&ready, dead)?;
    maps.wait(down, "up", Duration::from_secs(5))?;
    ensure!(crate::answering(&ready, http_vip(VIP_V4), 40)?.len() == 2, "both again");

    // Without a check nobody says that it is up.
    let text = config(&ready.lab, [3, 2], "kind = \"tcp\"");
    let without = text.split("[[deployments").enumerate().map(|(nth, part)| match nth {
        0 => String::new(),
        _ => format!("[[deployments{part}"),
    });
    let text = without.collect::<String>();
    ready.bgctl.write_config(&text)?;
    let mut controller = controller;
    controller.reload()?;
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let mut found = maps.of(up)?;
        found.sort_unstable();
        if found == ["unknown", "up"] {
            break Ok(());
        }
        ensure!(Instant::now() < end, "{found:?}");
        thread::sleep(Duration::from_millis(5));
    }
}
