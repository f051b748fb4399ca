//! What `--help` and the manual pages say of each command beside its grammar: an example, and the exit codes.

use std::fmt::Write as _;

use clap::{Command, CommandFactory as _};

use crate::args::Args;

/// What is told of one command.
pub(crate) struct Page {
    /// Its name; empty for `bgctl` itself.
    pub(crate) command: &'static str,
    /// More about it, for its manual page: one paragraph each.
    pub(crate) description: &'static [&'static str],
    /// What to type, and what that does.
    pub(crate) examples: &'static [(&'static str, &'static str)],
    /// Exit codes and their meaning.
    pub(crate) exit: &'static [(u8, &'static str)],
}

const DONE: (u8, &str) = (0, "done");
const FAILED: (u8, &str) = (1, "failed; stderr says why");
const USAGE: (u8, &str) = (2, "wrong usage, or no such deployment or interface; nothing was changed");
const CONFIGURATION: (u8, &str) = (2, "wrong usage, or the configuration is not valid; nothing was changed");
const REFUSED: (u8, &str) = (3, "refused by a precondition; nothing was changed");
const BUSY: (u8, &str) = (4, "another bgctl has worked on the instance all the while; nothing was changed");

/// All of them: `bgctl`, then the commands in the order of the grammar.
pub(crate) const PAGES: &[Page] = &[
    Page {
        command: "",
        description: &[
            "Programs on the host's interfaces rewrite the destination of packets that come for a virtual address. Each \
             deployment has two environments, blue and green, and one word in a BPF map says which of them is live. A \
             switch is one store to that word.",
            "bgctl starts, does its work and ends: programs, maps and links are pinned, and no process needs to stay. \
             Results go to stdout, messages to stderr.",
        ],
        examples: &[
            ("bgctl doctor", "see whether this host is fit, and what to mend"),
            ("bgctl attach eth0 eth1", "attach to the interfaces towards clients and backends"),
            ("bgctl apply", "run what /etc/bgctl/bgctl.toml says"),
            ("bgctl switch shop", "make the idle colour of deployment shop live"),
            ("bgctl rollback shop", "go back to the colour that was live before"),
        ],
        exit: &[
            DONE,
            FAILED,
            (2, "wrong usage or configuration; nothing was changed"),
            REFUSED,
            (4, "a wait timed out"),
            (5, "plan: apply would change something"),
        ],
    },
    Page {
        command: "doctor",
        description: &["Each finding is ok, warn or fail, and the last two come with a remedy. Nothing is changed."],
        examples: &[("bgctl doctor eth0 eth1 -c new.toml", "look at the host, two interfaces and a configuration")],
        exit: &[(0, "nothing has to be mended"), (1, "something has to be mended, or the examination failed"), USAGE],
    },
    Page {
        command: "attach",
        description: &[
            "Attach every interface that packets of a service come in by, be it from clients or from backends. An \
             interface that is attached already gets the programs of this version in place: no packet meets it without \
             one.",
        ],
        examples: &[
            ("bgctl attach eth0 eth1 --flows 1M", "attach to two NICs, with room for a million flows"),
            (
                "bgctl attach eth0 --services 20 --backends 200",
                "take less memory than for 1024 services and 16384 backends",
            ),
            ("bgctl attach br0 --mode tc", "attach to the bridge of virtual machines"),
            ("bgctl attach --from /etc/bgctl/interfaces --wait 30s", "attach to what a file names, as a boot does"),
        ],
        exit: &[
            DONE,
            FAILED,
            USAGE,
            REFUSED,
            (4, "another bgctl has worked on the instance all the while, or an interface of the file did not come"),
        ],
    },
    Page {
        command: "detach",
        description: &["The instance, its configuration and its open flows stay until --all removes the pins too."],
        examples: &[
            ("bgctl detach eth1", "take the programs off one interface"),
            ("bgctl detach --all", "end the instance; history and last live colours stay"),
        ],
        exit: &[DONE, FAILED, USAGE, REFUSED, BUSY],
    },
    Page {
        command: "check",
        description: &["Every problem is told at once, with line, column and what was expected. See bgctl.toml(5)."],
        examples: &[("bgctl check -c new.toml", "validate a file before it is put in place")],
        exit: &[(0, "the configuration is valid"), FAILED, CONFIGURATION],
    },
    Page {
        command: "plan",
        description: &["One line a change: + is added, - is removed, ~ is changed."],
        examples: &[
            ("bgctl plan -c new.toml", "see what an apply of that file would change"),
            ("bgctl show | bgctl plan -c -", "what runs differs from itself in nothing: exit code 0"),
        ],
        exit: &[(0, "nothing would change"), FAILED, CONFIGURATION, (5, "something would change")],
    },
    Page {
        command: "apply",
        description: &[
            "Services are replaced one by one, each as a whole. Flows that no change concerns do not notice, and live \
             colours stay as they are. An apply that was killed is completed by the next one.",
        ],
        examples: &[
            ("bgctl apply --reason 'two more backends'", "run what /etc/bgctl/bgctl.toml says"),
            ("render-config | bgctl apply -c -", "read the configuration from a pipe"),
        ],
        exit: &[DONE, FAILED, CONFIGURATION, REFUSED, BUSY],
    },
    Page {
        command: "show",
        description: &[
            "The result applies back to nothing. The live colour stands in `initial`, so that another host which applies \
             it begins where this one is.",
        ],
        examples: &[("bgctl show > backup.toml", "keep what runs")],
        exit: &[DONE, FAILED, USAGE],
    },
    Page {
        command: "status",
        description: &[
            "Of each deployment: what is live, what is still open on which colour, when a drain ends, what a plain \
             switch would do, who always reaches the idle colour, and the counters of its services.",
        ],
        examples: &[
            ("bgctl status shop --watch", "watch one deployment until Ctrl-C"),
            ("bgctl status --json | jq -r '.deployments[] | .name + \" \" + .live'", "what is live, for a script"),
        ],
        exit: &[DONE, FAILED, USAGE],
    },
    Page {
        command: "switch",
        description: &[
            "All services of the deployment switch at one instant. When the command has returned, no new flow on any CPU \
             goes to the other colour. To make live what is live already is a success that changes nothing.",
            "Scripts name the colour or give --if-generation: a plain switch that is run twice switches back.",
        ],
        examples: &[
            ("bgctl switch shop", "make the idle colour live"),
            (
                "bgctl switch shop green --on-switch cut --reason 'release 7'",
                "make green live, and end what is open on blue",
            ),
        ],
        exit: &[DONE, FAILED, USAGE, REFUSED, BUSY],
    },
    Page {
        command: "rollback",
        description: &["The options are those of bgctl-switch(1)."],
        examples: &[(
            "bgctl rollback shop --reason 'errors at the checkout'",
            "make the colour live that was live before",
        )],
        exit: &[DONE, FAILED, USAGE, REFUSED, BUSY],
    },
    Page {
        command: "flows",
        description: &[
            "Of each open flow: client, where it sends to, colour, backend, state, whether it came as a user, as a tester \
             or by the preview address, in which generation it was opened, and for how long it has been silent.",
        ],
        examples: &[
            ("bgctl flows shop --colour blue --count", "how many are left on blue"),
            ("bgctl flows --backend 10.0.1.11:8443", "who is connected to one backend"),
        ],
        exit: &[DONE, FAILED, USAGE],
    },
    Page {
        command: "history",
        description: &["Oldest first. Every record is a line of history.jsonl in the state directory."],
        examples: &[
            ("bgctl history shop -n 10", "the last ten changes of one deployment"),
            ("bgctl history --since 2h", "all changes of the last two hours"),
        ],
        exit: &[DONE, FAILED, USAGE],
    },
    Page {
        command: "completions",
        description: &[
            "The script asks bgctl itself for what fits: deployments and their services as they run, or else as \
             /etc/bgctl/bgctl.toml has them, colours, and interfaces.",
        ],
        examples: &[
            ("source <(bgctl completions bash)", "complete in this shell"),
            ("bgctl completions fish > ~/.config/fish/completions/bgctl.fish", "complete in every fish"),
        ],
        exit: &[DONE, FAILED, USAGE],
    },
    Page {
        command: "man",
        description: &["One page a command in section 1, and bgctl.toml(5)."],
        examples: &[("bgctl man /usr/local/share/man/man1", "write the pages")],
        exit: &[DONE, FAILED, USAGE],
    },
];

/// The command line's grammar with its examples and exit codes.
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

    /// Whatever an example says after `bgctl` is understood.
    #[test]
    fn examples_are_of_the_grammar() {
        for page in PAGES {
            assert!(!page.examples.is_empty() && page.exit.len() >= 3, "{}", page.command);
            for (line, _) in page.examples {
                let calls: Vec<_> =
                    line.split(['|', '(', ')', '>']).filter(|part| part.trim().starts_with("bgctl ")).collect();
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
