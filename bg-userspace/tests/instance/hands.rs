//! Virtual addresses that change hands: their clients keep their live colour, or the apply is refused; and what a plan
//! tells of deployments that begin and end.

use bg_userspace::{
    ApplyRequest, Colour, Error, ErrorClass, Protocol, Refusal, SwitchRequest, Target, config::Config, config::Prefix,
    detach,
};

use crate::{
    flows::{attached, send},
    lab::{Lab, config},
};

/// Deployments by name, each with services at these ports.
fn deployments(all: &[(&str, &[u16])]) -> Config {
    let deployment = |(name, ports): &(&str, &[u16])| {
        let mut deployment = config(name, &[(1, 1)], &[(1, 1)]).deployments.remove(0);
        let service = deployment.services.remove(0);
        for port in *ports {
            let mut service = service.clone();
            (service.name, service.protocol) = (format!("s{port}"), Protocol::Udp);
            service.vip.set_port(*port);
            deployment.services.push(service);
        }
        deployment
    };
    Config { deployments: all.iter().map(deployment).collect(), ..Config::default() }
}

fn switch(lab: &Lab, name: &str, to: Colour) {
    let request = SwitchRequest { to: Some(to), force: true, ..SwitchRequest::default() };
    lab.instance().switch(name, &request).unwrap();
}

/// Live colour, previous colour and generation.
fn state(lab: &Lab, name: &str) -> (&'static str, &'static str, u32) {
    let status = lab.instance().status(Some(name)).unwrap();
    let shop = &status.deployments[0];
    (shop.live, shop.previous, shop.generation)
}

fn plan(lab: &Lab, config: &Config) -> Vec<String> {
    lab.instance().plan(config).unwrap().to_string().lines().map(str::to_owned).collect()
}

#[test]
fn a_renamed_deployment_goes_on_with_its_live_colour() {
    let lab = attached(1000);
    lab.instance().apply(&deployments(&[("mail", &[25]), ("shop", &[443, 80])])).unwrap();
    switch(&lab, "shop", Colour::Green);
    (1..=3).for_each(|client| send(&lab, [198, 51, 100, client], 5000));
    let renamed = deployments(&[("mail", &[25]), ("store", &[443, 80])]);
    let told = plan(&lab, &renamed);
    for line in [
        "+ store: starts with green live, taken over with its virtual addresses from \"shop\"",
        "- shop s443: 203.0.113.10:443/udp; ends 3 open flows",
        "- shop s80: 203.0.113.10:80/udp",
        "- shop; ends 3 open flows",
    ] {
        assert!(told.iter().any(|told| told == line), "{line}: {told:#?}");
    }
    let applied = lab.instance().apply(&renamed).unwrap().to_string();
    assert!(applied.contains("starts with green live"), "{applied}");
    assert_eq!(state(&lab, "store"), ("green", "blue", 2));
    assert_eq!(state(&lab, "mail"), ("blue", "blue", 1));
    assert_eq!(plan(&lab, &renamed), [""; 0]);
    // And after a reboot, since it has been remembered.
    detach(&lab.paths, &Target::All).unwrap();
    lab.attach("v0", bg_userspace::AttachMode::Tc).unwrap();
    let told = plan(&lab, &renamed);
    assert!(
        told.contains(&"+ mail: starts with blue live, as recorded in the state directory (generation 1)".into()),
        "{told:#?}"
    );
    assert!(
        told.contains(&"+ store: starts with green live, as recorded in the state directory (generation 2)".into())
    );
    lab.instance().apply(&renamed).unwrap();
    assert_eq!(state(&lab, "store"), ("green", "blue", 2));
}

#[test]
fn a_deployment_whose_switch_waits_is_not_renamed_without_force() {
    let waits = |request: SwitchRequest| {
        let lab = attached(1000);
        let before = deployments(&[("mail", &[25]), ("shop", &[443, 80])]);
        lab.instance().apply(&before).unwrap();
        lab.instance().switch("shop", &SwitchRequest { to: Some(Colour::Green), ..request.clone() }).unwrap();
        // What somebody has to confirm is not kept, and so not in force under another name.
        let kept = if request.confirm_within.is_some() { "blue" } else { state(&lab, "shop").0 };
        let renamed: &[(&str, &[u16])] = &[("mail", &[25]), ("store", &[443, 80])];
        let divided: &[(&str, &[u16])] = &[("mail", &[25]), ("shop", &[443]), ("web", &[80])];
        for after in [renamed, divided].map(deployments) {
            let error = lab.instance().apply(&after).unwrap_err();
            assert_eq!(error.class(), ErrorClass::Refused, "{error}");
            let Error::Refused(Refusal::SwitchWaits { deployment, .. }) = &error else { panic!("{error}") };
            assert_eq!(deployment, "shop");
            assert!(lab.instance().plan(&before).unwrap().is_empty(), "nothing has been changed");
        }
        // What changes nothing of it is no matter, and neither is a service that ends.
        lab.instance().apply(&deployments(&[("post", &[25]), ("shop", &[443])])).unwrap();
        let forced = ApplyRequest { force: true, ..ApplyRequest::default() };
        lab.instance().apply_as(&deployments(&[("mail", &[25]), ("store", &[443])]), &forced).unwrap();
        assert_eq!(state(&lab, "store").0, kept);
    };
    let hour = std::time::Duration::from_secs(3600);
    waits(SwitchRequest { confirm_within: Some(hour), ..SwitchRequest::default() });
    waits(SwitchRequest { revert_if: vec!["silence 1h".parse().unwrap()], ..SwitchRequest::default() });
    waits(SwitchRequest { at: Some(jiff::Timestamp::now() + hour), ..SwitchRequest::default() });
    waits(SwitchRequest { ramp: Some(hour), ..SwitchRequest::default() });
}

#[test]
fn a_service_that_moves_to_a_new_deployment_takes_its_colour_along() {
    let lab = attached(1000);
    lab.instance().apply(&deployments(&[("mail", &[25]), ("shop", &[443, 80])])).unwrap();
    switch(&lab, "shop", Colour::Green);
    switch(&lab, "mail", Colour::Green);
    switch(&lab, "mail", Colour::Blue);
    let split = deployments(&[("mail", &[25]), ("shop", &[443]), ("dns", &[53]), ("static", &[80, 81])]);
    let told = plan(&lab, &split);
    assert!(told.contains(&"+ dns: starts with blue live, its initial colour".to_owned()), "{told:#?}");
    lab.instance().apply(&split).unwrap();
    assert_eq!((state(&lab, "static"), state(&lab, "dns")), (("green", "blue", 2), ("blue", "blue", 1)));
    // Back again, since both are green, and so is what is made of both.
    lab.instance().apply(&deployments(&[("mail", &[25]), ("shop", &[443, 80])])).unwrap();
    assert_eq!(state(&lab, "shop"), ("green", "blue", 2));
}

#[test]
fn where_colours_differ_it_takes_force() {
    let lab = attached(1000);
    let before = deployments(&[("mail", &[25]), ("shop", &[443, 80])]);
    lab.instance().apply(&before).unwrap();
    switch(&lab, "shop", Colour::Green);
    let into_another = deployments(&[("mail", &[25, 80]), ("shop", &[443])]);
    let of_both = deployments(&[("all", &[25, 443, 80])]);
    for (after, changes) in [(&into_another, 1), (&of_both, 2)] {
        let error = lab.instance().apply(after).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Refused);
        let Error::Refused(Refusal::ColourChanges { changes: refused }) = &error else { panic!("{error}") };
        assert_eq!(refused.len(), changes, "{refused:?}");
        assert!(error.to_string().contains("203.0.113.10:80/udp has green live in \"shop\""), "{error}");
        assert!(lab.instance().plan(&before).unwrap().is_empty(), "nothing has been changed");
        let told = plan(&lab, after);
        assert_eq!(told.iter().filter(|line| line.ends_with("refused without --force")).count(), changes, "{told:#?}");
    }
    let forced = ApplyRequest { force: true, ..ApplyRequest::default() };
    lab.instance().apply_as(&into_another, &forced).unwrap();
    assert_eq!((state(&lab, "mail").0, state(&lab, "shop").0), ("blue", "green"));
    lab.instance().apply_as(&of_both, &forced).unwrap();
    assert_eq!(state(&lab, "all"), ("blue", "blue", 1));
}

#[test]
fn on_the_command_line_a_refusal_is_a_3() {
    let toml = |name: &str, other: &str| {
        let service = |deployment: &str, port: u16| {
            format!(
                "[[deployments.{deployment}.services]]\nvip = \"203.0.113.10:{port}\"\nprotocol = \"udp\"\nmode = \"nat\"\n\
                 blue = [\"10.0.0.1:8443\"]\ngreen = [\"10.0.1.1:8443\"]\n"
            )
        };
        service(name, 25) + &service(other, 443)
    };
    let lab = attached(1000);
    let run = |file: &std::path::Path, more: &[&str]| {
        let output = lab.bgctl().arg("apply").arg("-c").arg(file).args(more).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (apart, together) = (lab.file("1.toml", &toml("mail", "shop")), lab.file("2.toml", &toml("mail", "mail")));
    assert_eq!(run(&apart, &[]).0, Some(0));
    switch(&lab, "shop", Colour::Green);
    let (code, stdout, stderr) = run(&together, &[]);
    assert_eq!((code, stdout.as_str()), (Some(3), ""), "{stderr}");
    assert!(stderr.contains("would have blue live in \"mail\"") && stderr.contains("--force"), "{stderr}");
    let (code, stdout, stderr) = run(&together, &["--force"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("- shop\n"), "{stdout}");
}

#[test]
fn the_first_and_the_last_tester_are_told_as_nothing_else() {
    let lab = attached(1000);
    let without = deployments(&[("mail", &[25]), ("shop", &[443, 80])]);
    let mut with = without.clone();
    with.deployments[1].testers.push(Prefix { addr: [198, 51, 100, 0].into(), len: 24 });
    lab.instance().apply(&without).unwrap();
    assert_eq!(plan(&lab, &with), ["+ shop: tester 198.51.100.0/24"]);
    lab.instance().apply(&with).unwrap();
    assert_eq!(plan(&lab, &with), [""; 0]);
    assert_eq!(plan(&lab, &without), ["- shop: tester 198.51.100.0/24"]);
    lab.instance().apply(&without).unwrap();
    assert_eq!(plan(&lab, &without), [""; 0]);
}
