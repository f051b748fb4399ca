//! Examples and exit codes of each command, for `--help` and the manual pages.

use std::fmt::Write as _;

use clap::{Command, CommandFactory as _};

use crate::args::Args;

/// The texts about one command.
pub(crate) struct Page {
    /// Its name; empty for `bgctl` itself.
    pub(crate) command: &'static str,
    /// Its description in the manual page: one paragraph each.
    pub(crate) description: &'static [&'static str],
    /// Command lines, each with its effect.
    pub(crate) examples: &'static [(&'static str, &'static str)],
    /// Exit codes and their meaning.
    pub(crate) exit: &'static [(u8, &'static str)],
}

const DONE: (u8, &str) = (0, "done");
const FAILED: (u8, &str) = (1, "failed; stderr says why");
const USAGE: (u8, &str) = (2, "usage error, or no such deployment or interface; nothing was changed");
const CONFIGURATION: (u8, &str) = (2, "usage error, or the configuration is not valid; nothing was changed");
const REFUSED: (u8, &str) = (3, "refused because a precondition does not hold; nothing was changed");
const BUSY: (u8, &str) = (4, "another bgctl worked on the instance for the whole wait; nothing was changed");

/// All pages: that of `bgctl`, then those of the commands in the order of the grammar.
pub(crate) const PAGES: &[Page] = &[
    Page {
        command: "",
        description: &[
            "Programs on the host's interfaces rewrite the destination of packets to a virtual address. Each deployment has \
             two environments, blue and green, and one word in a BPF map says which of them is live. A switch is one store \
             to that word.",
            "bgctl does its work and exits. Programs, maps and links are pinned, so no process has to keep running. Results \
             go to stdout, messages to stderr.",
        ],
        examples: &[
            ("bgctl doctor", "check this host, and see what to fix"),
            ("bgctl attach eth0 eth1", "attach to the interfaces towards clients and backends"),
            ("bgctl apply", "apply /etc/bgctl/bgctl.toml"),
            ("bgctl switch shop", "make the idle colour of deployment shop live"),
            ("bgctl rollback shop", "make the colour live that was live before"),
        ],
        exit: &[
            DONE,
            FAILED,
            (2, "usage or configuration error; nothing was changed"),
            REFUSED,
            (4, "a wait timed out"),
            (5, "plan: an apply would change something"),
        ],
    },
    Page {
        command: "doctor",
        description: &[
            "Each finding is ok, warn or fail, and the last two come with a remedy. The command changes nothing.",
        ],
        examples: &[("bgctl doctor eth0 eth1 -c new.toml", "check the host, two interfaces and a configuration")],
        exit: &[(0, "nothing has to be fixed"), (1, "something has to be fixed, or a check could not run"), USAGE],
    },
    Page {
        command: "attach",
        description: &[
            "Attach every interface on which packets of a service arrive, from clients or from backends. If an interface is \
             attached already, its programs are replaced in place by those of this version, so that no packet passes without \
             a program.",
        ],
        examples: &[
            ("bgctl attach eth0 eth1 --flows 1M", "attach to two NICs, with room for a million flows"),
            (
                "bgctl attach eth0 --services 20 --backends 200",
                "use less memory than for 1024 services and 16384 backends",
            ),
            ("bgctl attach br0 --mode tc", "attach to a bridge of virtual machines"),
            ("bgctl attach --from /etc/bgctl/interfaces --wait 30s", "attach to the interfaces in a file, as at boot"),
        ],
        exit: &[
            DONE,
            FAILED,
            USAGE,
            REFUSED,
            (4, "another bgctl worked on the instance for the whole wait, or an interface of the file did not appear"),
        ],
    },
    Page {
        command: "detach",
        description: &[
            "The instance remains, with its configuration and open flows, unless --all removes the pins too.",
        ],
        examples: &[
            ("bgctl detach eth1", "remove the programs from one interface"),
            ("bgctl detach --all", "remove the instance; keep the history and the last live colours"),
        ],
        exit: &[DONE, FAILED, USAGE, REFUSED, BUSY],
    },
    Page {
        command: "check",
        description: &["Prints all problems at once, each with line, column and what was expected. See bgctl.toml(5)."],
        examples: &[("bgctl check -c new.toml", "validate a file before you install it")],
        exit: &[(0, "the configuration is valid"), FAILED, CONFIGURATION],
    },
    Page {
        command: "plan",
        description: &["Prints one line for each change: + is added, - is removed, ~ is changed."],
        examples: &[
            ("bgctl plan -c new.toml", "show what applying this file would change"),
            ("bgctl show | bgctl plan -c -", "compare the running configuration with itself: exit code 0"),
        ],
        exit: &[(0, "nothing would change"), FAILED, CONFIGURATION, (5, "something would change")],
    },
    Page {
        command: "apply",
        description: &[
            "Replaces services one by one, each as a whole. Flows that no change concerns are not disturbed, and live colours \
             do not change. If an apply is killed, the next one completes it.",
        ],
        examples: &[
            ("bgctl apply --reason 'two more backends'", "apply /etc/bgctl/bgctl.toml"),
            ("render-config | bgctl apply -c -", "read the configuration from a pipe"),
        ],
        exit: &[DONE, FAILED, CONFIGURATION, REFUSED, BUSY],
    },
    Page {
        command: "show",
        description: &[
            "Applying the result changes nothing. `initial` is the live colour, so that another host which applies the \
             result starts with the same colour.",
        ],
        examples: &[("bgctl show > backup.toml", "save the running configuration")],
        exit: &[DONE, FAILED, USAGE],
    },
    Page {
        command: "status",
        description: &[
            "Shows for each deployment which colour is live, how many flows are open on each colour, when a drain ends, what \
             a plain switch would do, who always reaches the idle colour, and the counters of its services.",
        ],
        examples: &[
            ("bgctl status shop --watch", "watch one deployment until Ctrl-C"),
            (
                "bgctl status --json | jq -r '.deployments[] | .name + \" \" + .live'",
                "print the live colours, for a script",
            ),
        ],
        exit: &[DONE, FAILED, USAGE],
    },
    Page {
        command: "switch",
        description: &[
            "All services of the deployment switch at one instant. When the command has returned, no new flow on any CPU \
             goes to the other colour. Switching to the colour that is already live succeeds and changes nothing.",
            "In scripts, name the colour or give --if-generation. A plain switch that is run twice switches back.",
            "With --confirm-within the data path goes back at the deadline by itself, unless bgctl-confirm(1) comes before. --at and --ramp work \
             without a process too. The next change of the deployment cancels what has not taken effect.",
            "With --revert-if the data path goes back as soon as new flows of the new colour are reset, unanswered or met by silence. Flows are \
             counted from the switch on, over all services of the deployment, and never before the least number of them. A condition that the flows of the old colour \
             meet too is not armed.",
            "With --freeze new flows are held first; then --before runs, the old colour comes to rest (no open TCP connection, and no \
             datagram in the last second; a cut does not wait for that), the switch is made, --after runs, and new flows go on. If a command \
             fails or the time is over, the old colour stays live, or becomes live again before any new flow has met the new one, even if bgctl \
             is killed. The commands are run by /bin/sh with BGCTL_DEPLOYMENT, BGCTL_FROM, BGCTL_TO and BGCTL_GENERATION, and print \
             to stderr.",
            "With --dry-run the exit code is 3 if the switch would be refused, and 0 otherwise, even if backends are not ready.",
            "If the configuration has gates for the deployment, the command asks them, as the last apply has kept them in the state directory; \
             no controller has to run. Those before the switch are asked once, in order; if one fails, nothing changes. Those after it \
             are asked again and again, until the time of --confirm-within is nearly over; then the switch is confirmed. If one of them fails, the \
             switch is rolled back at once. Without --confirm-within, that time is what one attempt of each gate may take, and one interval. If the \
             command is killed meanwhile, the data path goes back at the deadline. Gates that hang or cannot be run have failed. If an apply changes the deployment while the gates before the switch are asked, it is refused. A rollback asks no gates.",
        ],
        examples: &[
            ("bgctl switch shop", "make the idle colour live"),
            ("bgctl switch shop --dry-run", "say what that would do to open flows, and whether the backends are there"),
            (
                "bgctl switch shop green --on-switch cut --reason 'release 7'",
                "make green live, and end the open flows on blue",
            ),
            (
                "bgctl switch shop green --confirm-within 5m",
                "make green live, and go back in five minutes unless confirmed",
            ),
            (
                "bgctl switch shop green --confirm-within 5m --revert-if 'silence 2s'",
                "go back before that if nobody on green answers for two seconds",
            ),
            ("bgctl switch shop green --ramp 1h", "move new flows to green in the course of an hour"),
            (
                "bgctl switch shop green --freeze 10s --before ./read-only --after ./read-write",
                "switch while no flow is open, with a command before and after",
            ),
        ],
        exit: &[
            DONE,
            FAILED,
            USAGE,
            (3, "refused because a precondition does not hold, a gate has failed, or a command of --freeze has"),
            (
                4,
                "another bgctl worked on the instance for the whole wait, or the time of --freeze was over; nothing was changed",
            ),
        ],
    },
    Page {
        command: "rollback",
        description: &[
            "The options are those of bgctl-switch(1). A rollback asks no gates.",
            "What still waits, or is on its way, is ended. If the last change was one of the share only, the share before it is set again. If it has gone back already, a \
             rollback without a colour is refused (exit code 3): name the colour, or give --if-generation.",
            "While the deployment has gates, a rollback that names a colour is refused if that is not kept, and was not kept before, or something has gone back \
             from it since, because only a switch asks them. So is one by --if-generation that would undo a rollback. --skip-gates makes it anyway, and the history says so. \
             Any other rollback is never refused for gates.",
        ],
        examples: &[(
            "bgctl rollback shop --reason 'errors at the checkout'",
            "make the colour live that was live before",
        )],
        exit: &[DONE, FAILED, USAGE, REFUSED, BUSY],
    },
    Page {
        command: "confirm",
        description: &[
            "Keeps a switch that was made with --confirm-within or --revert-if. If it is too late, because the data path has taken the switch back, \
             the exit code is 3. Confirming a second time changes nothing.",
        ],
        examples: &[("smoke-test && bgctl confirm shop", "keep the switch if a test passes")],
        exit: &[DONE, FAILED, USAGE, REFUSED, BUSY],
    },
    Page {
        command: "split",
        description: &[
            "Sends a share of new flows to green and the others to blue. Open flows stay where they are. With 0 or 100 it is a switch.",
            "With --by client all flows of a client go to one colour. A larger share only moves clients to green, and a smaller one \
             takes back first those who came last. Without --by, a share that changes divides the same as before.",
            "A split asks no gates. While the deployment has some, a split that would make another colour live is refused (exit code 3), because only a \
             switch asks them. --skip-gates makes it anyway, and the history says so.",
            "With --dry-run the exit code is 3 if the split would be refused, and 0 otherwise.",
        ],
        examples: &[
            ("bgctl split shop --green 5 --by client", "let five percent of the clients try green"),
            ("bgctl split shop --green 25 --dry-run", "say what a larger share would do to open flows"),
            ("bgctl split shop --green 0", "all new flows to blue"),
        ],
        exit: &[DONE, FAILED, USAGE, REFUSED, BUSY],
    },
    Page {
        command: "freeze",
        description: &[
            "Packets that would open a flow (a SYN, or a datagram without a flow) are held, and go on in the order of their arrival at \
             the thaw, so that a client sees a delay rather than a time-out. Open flows are not disturbed. When the command has \
             returned, no CPU opens a flow of the deployment. Flows of testers and to preview addresses are not held.",
            "The freeze ends by itself after --max, even if no process lives. A process that the command leaves behind then plays the \
             held packets back; if it was killed, the next command does. A second freeze sets a new end. The log takes 4 MiB for all \
             deployments, which is 40,000 SYNs. What finds no room is dropped and counted as hold_overflow.",
        ],
        examples: &[
            ("bgctl freeze shop --max 5s", "hold new flows for five seconds at most"),
            ("bgctl freeze shop --drop", "drop packets that would open a flow; clients send them again"),
        ],
        exit: &[DONE, FAILED, USAGE, REFUSED, BUSY],
    },
    Page {
        command: "thaw",
        description: &[
            "Held packets are played back first. New ones wait behind them, so that no packet overtakes another one of its flow. \
             Packets that are older than two minutes are dropped and counted as held_too_long.",
        ],
        examples: &[("bgctl thaw shop", "let new flows go on")],
        exit: &[DONE, FAILED, USAGE, REFUSED, BUSY],
    },
    Page {
        command: "drain",
        description: &[
            "Counts the flows that were opened before the last switch and are still on the idle colour, by backend. With --wait \
             or --timeout it waits until there are none, and says how many are left whenever that changes.",
            "With --then reset, flows that are left then end, and the drain with them. TCP connections are reset at both ends, also \
             those that say nothing. If an end does not answer, its flow is still counted as left, and is reset when \
             it is heard of again.",
            "With --backend, it is about the flows of one backend. To take a backend out, give it the weight 0 and apply: then it gets no \
             new flows. Drain it, and remove it from the configuration. An apply that removes a backend resets what is left there.",
            "While both colours get new flows, none of them drains, and the command is refused. With --wait it waits until a ramp has ended.",
        ],
        examples: &[
            ("bgctl drain shop", "print how many flows are left"),
            ("bgctl drain shop --wait --timeout 10m --then reset", "wait for ten minutes, then end what is left"),
            (
                "bgctl drain shop --backend 10.0.1.11:8443 --wait",
                "wait until a backend of weight 0 has no flow any more",
            ),
        ],
        exit: &[(0, "no flow is left"), FAILED, USAGE, REFUSED, (4, "flows are left")],
    },
    Page {
        command: "decap",
        description: &[
            "Runs on a backend of a service in mode ipip or gue, whose address is also the VIP's: that stands on a loopback there. In XDP, packets are unpacked whose outer \
             and inner destination are addresses of this host, and whose outer source may send them. Everything else passes. The devices of Linux for ipip, sit, ip6tnl and \
             fou can be used in its place.",
            "Nothing has to keep running: the link is pinned in the directory of --pin-root with the suffix -decap. The addresses of this host are read once. After \
             a change, run the same command again: it replaces the program in place.",
        ],
        examples: &[
            ("bgctl decap attach eth0", "unpack what neighbours send"),
            ("bgctl decap attach eth0 --from 10.9.0.0/24,2001:db8:9::/64", "unpack what comes from these prefixes"),
            ("bgctl decap status", "show what was unpacked, and what passed"),
            ("bgctl decap detach eth0", "unpack no longer"),
        ],
        exit: &[DONE, FAILED, USAGE],
    },
    #[cfg(feature = "serve")]
    Page {
        command: "drill",
        description: &[
            "Makes the idle colour live, asks the gates of the deployment, and makes the colour live that was live before, whatever the gates say. \
             With --back-after, the gates after the switch are asked again and again until that time is over. Open flows stay, or end, on both \
             ways as in any switch.",
            "A drill is never confirmed. If it is killed, the data path goes back by itself, some seconds after the drill would have been over.",
        ],
        examples: &[
            ("bgctl drill shop", "switch, ask the gates once, and switch back"),
            (
                "bgctl drill shop --back-after 5m --json",
                "let the other colour serve for five minutes, and print the times as JSON",
            ),
        ],
        exit: &[
            (0, "all gates have passed, and the old colour is live again"),
            FAILED,
            USAGE,
            (3, "refused because a precondition does not hold, or a gate has failed; the old colour is live"),
            BUSY,
        ],
    },
    Page {
        command: "flows",
        description: &[
            "Lists for each open flow the client, the address that the client sends to, the colour, the backend, the state, \
             whether it is the flow of a user or a tester or goes to the preview address, the generation in which it was opened, \
             and how long it has been silent.",
        ],
        examples: &[
            ("bgctl flows shop --colour blue --count", "print how many flows are left on blue"),
            ("bgctl flows --backend 10.0.1.11:8443", "list the flows to one backend"),
        ],
        exit: &[DONE, FAILED, USAGE],
    },
    Page {
        command: "explain",
        description: &[
            "Runs the packet engine on the maps of the running instance and prints each step that decides: which service, which \
             flow, which colour and backend, and by which way the packet leaves. Nothing is sent, and no counter, flow or next \
             hop changes.",
            "A packet that XDP leaves to tc, or that a program on its way out rewrites, is explained at each program that it \
             meets. The segment gets the numbers that a real one would have: a SYN of a connection that is being opened is \
             taken for a retransmission, and a reply acknowledges the client's SYN.",
        ],
        examples: &[
            (
                "bgctl explain --from 198.51.100.7:40000 --to 203.0.113.10:443 --protocol tcp",
                "say where a new connection of this client goes",
            ),
            (
                "bgctl explain --from 10.0.1.11:8443 --to 198.51.100.7:40000 --protocol tcp --flags ACK",
                "say what happens to a reply of a backend",
            ),
        ],
        exit: &[DONE, FAILED, USAGE, REFUSED],
    },
    Page {
        command: "history",
        description: &[
            "Prints the oldest record first. Each record is a line of history.jsonl in the state directory.",
            "Each record has a number and the SHA-256 of the record before. --verify checks this chain and says which lines are not as they \
             were written. No key is involved: keep the SHA-256 of the last record elsewhere to find out whether the whole chain was written anew.",
        ],
        examples: &[
            ("bgctl history shop -n 10", "print the last ten changes of one deployment"),
            ("bgctl history --since 2h", "print all changes of the last two hours"),
            ("bgctl history --verify", "check the chain of records"),
        ],
        exit: &[DONE, (1, "failed, or --verify found a fault"), USAGE],
    },
    #[cfg(feature = "serve")]
    Page {
        command: "serve",
        description: &[
            "Packets do not need it: if it ends or is killed, they go where they went before, and its successor learns the state from \
             the pinned maps. The exception are services in mode tee: the controller relays their connections, so these end with it, and new ones are \
             refused until the next one runs. Only one controller can run on an instance.",
            "SIGHUP reads the configuration again; an invalid one is reported and changes nothing. SIGTERM ends the controller and \
             leaves the data path as it is. Under systemd, it tells when it is ready and that it is alive, and writes to the journal.",
        ],
        examples: &[
            ("bgctl serve", "run with /etc/bgctl/bgctl.toml"),
            ("bgctl serve -c shop.toml --log-format json", "another configuration, and messages for programs"),
        ],
        exit: &[(0, "a signal has ended it"), FAILED, CONFIGURATION, (3, "another controller runs on the instance")],
    },
    #[cfg(feature = "serve")]
    Page {
        command: "top",
        description: &[
            "Shows each deployment with its live colour, its phase with the time that is left, flows per second of each colour, open \
             flows, backends and the last changes. The arrow keys choose a deployment; ? lists all keys.",
            "s, r, c, f and t switch, roll back, confirm, freeze and thaw it. Each of them shows first what it would do, as --dry-run does, \
             and asks. The change is made only if you answer y, and only if the deployment is still at the generation that was shown.",
            "If there is no instance, or it is removed meanwhile, top says so and waits for one. Nothing depends on it: it can be left \
             or killed at any time, and restores the terminal.",
        ],
        examples: &[("bgctl top", "show all deployments"), ("bgctl top shop", "show one deployment")],
        exit: &[DONE, FAILED, (2, "usage error, no such deployment, or standard input or output is not a terminal")],
    },
    Page {
        command: "completions",
        description: &[
            "The script calls bgctl for each completion. It offers the deployments and services that run, or else those of \
             /etc/bgctl/bgctl.toml, colours, and interfaces.",
        ],
        examples: &[
            ("source <(bgctl completions bash)", "complete in this shell"),
            ("bgctl completions fish > ~/.config/fish/completions/bgctl.fish", "complete in every fish shell"),
        ],
        exit: &[DONE, FAILED, USAGE],
    },
    Page {
        command: "man",
        description: &["Writes one page for each command in section 1, and bgctl.toml(5)."],
        examples: &[("bgctl man /usr/local/share/man/man1", "write the pages")],
        exit: &[DONE, FAILED, USAGE],
    },
];

/// The grammar of the command line, with examples and exit codes.
pub(crate) fn grammar() -> Command {
    PAGES.iter().fold(Args::command(), |grammar, page| {
        if page.command.is_empty() {
            grammar.after_help(after_help(page))
        } else {
            grammar.mut_subcommand(page.command, |command| command.after_help(after_help(page)))
        }
    })
}

fn after_help(page: &Page) -> String {
    let mut text = String::from("Examples:\n");
    for (line, effect) in page.examples {
        let _ = writeln!(text, "  {line}\n          {effect}");
    }
    text += "\nExit codes:\n";
    for (code, meaning) in page.exit {
        let _ = writeln!(text, "  {code}  {meaning}");
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches as _;

    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_page_a_command() {
        let grammar = Args::command();
        let mut commands = vec![""];
        commands.extend(grammar.get_subcommands().map(Command::get_name));
        let pages: Vec<_> = PAGES.iter().map(|page| page.command).collect();
        assert_eq!(pages, commands);
        super::grammar().debug_assert();
    }

    /// The grammar accepts whatever an example says after `bgctl`.
    #[test]
    fn examples_are_of_the_grammar() {
        for page in PAGES {
            assert!(!page.examples.is_empty() && page.exit.len() >= 3, "{}", page.command);
            for (line, _) in page.examples {
                let calls: Vec<_> =
                    line.split(['|', '(', ')', '>', '&']).filter(|part| part.trim().starts_with("bgctl ")).collect();
                assert!(!calls.is_empty(), "{line}");
                for call in calls {
                    // A reason in quotes is one word.
                    let words = call.trim().replace('\'', "\"");
                    let words = words.split('"').enumerate().flat_map(|(index, part)| match index % 2 {
                        0 => part.split_whitespace().collect(),
                        _ => vec![part],
                    });
                    let matches =
                        grammar().try_get_matches_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
                    Args::from_arg_matches(&matches).unwrap();
                }
            }
        }
    }
}
