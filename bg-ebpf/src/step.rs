//! The steps of a packet's way that decide something. The engine notes them by [`crate::world::World::note`], which does nothing but in the
//! object that explains (feature `explain`). There each step becomes numbers, and user space turns the numbers into sentences.

macro_rules! steps {
    ($($(#[$doc:meta])* $code:literal $name:ident $text:literal { $($(#[$field_doc:meta])* $field:ident),* })+) => {
        /// A step. Its values are numbers: indexes, rows and words of the maps.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Step {
            $($(#[$doc])* $name { $($(#[$field_doc])* $field: u64),* },)+
        }

        impl Step {
            /// The code of the step, and its values; the rest is zero.
            #[inline(always)]
            pub const fn words(self) -> [u64; WORDS] {
                match self {
                    $(Self::$name { $($field),* } => padded([$code, $($field),*]),)+
                }
            }

            /// From [`Step::words`]. `None`: there is no such step.
            pub const fn from_words(words: [u64; WORDS]) -> Option<Self> {
                let [code, values @ ..] = words;
                match code {
                    $($code => {
                        let [$($field,)* ..] = values;
                        Some(Self::$name { $($field),* })
                    })+
                    _ => None,
                }
            }

            /// Its name in JSON.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name { .. } => $text,)+
                }
            }
        }
    };
}

/// Words of a step: its code and at most five values.
pub const WORDS: usize = 6;

#[inline(always)]
const fn padded<const N: usize>(from: [u64; N]) -> [u64; WORDS] {
    const { assert!(N <= WORDS) };
    let mut words = [0; WORDS];
    let mut nth = 0;
    while nth < N {
        words[nth] = from[nth];
        nth += 1;
    }
    words
}

steps! {
    /// The packet is read, at a hook.
    1 Begin "begin" {
        /// [`crate::Direction`].
        direction,
        /// The tick.
        now
    }
    /// The frame bears another machine's MAC address.
    2 OtherMachine "other_machine" {}
    /// The destination is a virtual address.
    3 Vip "vip" {
        /// Row of `vips`.
        row
    }
    /// It is none.
    4 NoVip "no_vip" {}
    /// A flow is in the table.
    5 Flow "flow" {
        /// [`bg_common::FlowBackend`].
        backend,
        /// The generation that it was opened in.
        generation,
        /// [`bg_common::FlowState`].
        state,
        /// The tick of its last packet.
        last_seen,
        /// [`bg_common::Flow::note`].
        note
    }
    /// No flow is in the table.
    6 NoFlow "no_flow" {}
    /// The flow takes the packet.
    7 Continues "continues" {}
    /// The backend of the flow has been removed.
    8 BackendGone "backend_gone" {}
    /// A switch has ended the flow.
    9 EndedBySwitch "ended_by_switch" {
        /// Colour of the flow's backend.
        colour,
        /// The generation that it was opened in.
        generation,
        /// The live word.
        word,
        /// Whether it is a flow of the idle colour alone, which is live now.
        is_confined
    }
    /// The flow was silent for too long.
    10 Silent "silent" {
        /// The tick of its last packet.
        last_seen
    }
    /// The SYN opens another connection from the client's port.
    11 Reopens "reopens" {}
    /// A SYN inside an established connection.
    12 SynInside "syn_inside" {}
    /// The backend has refused a connection that was picked up in mid-stream: the other colour gets it.
    13 Refused "refused" {}
    /// The destination is a preview address: the idle colour.
    14 Preview "preview" {
        /// Index of the deployment.
        deployment,
        /// The live word.
        word
    }
    /// The client is a tester: the idle colour.
    15 Tester "tester" {
        /// Index of the deployment.
        deployment,
        /// The live word.
        word
    }
    /// The live word chooses the colour.
    16 Live "live" {
        /// Index of the deployment.
        deployment,
        /// The live word.
        word,
        /// The colour.
        colour
    }
    /// A connection that was picked up in mid-stream gets its second chance.
    17 SecondChance "second_chance" {
        /// The colour.
        colour
    }
    /// The backend of a new flow.
    18 Backend "backend" {
        /// Slot of `backends`.
        slot,
        /// Entry of the Maglev table.
        entry,
        /// Length of the table.
        len
    }
    /// The backend could not tell the flow from another one of the client.
    19 Rival "rival" {}
    /// A RST that belongs to no flow opens none.
    20 Unremembered "unremembered" {}
    /// The flow gets a row, or not.
    21 Opened "opened" {
        /// [`crate::flow::table::Stored`].
        stored
    }
    /// The deadline of a drain has passed.
    22 DrainOver "drain_over" {
        /// Index of the deployment.
        deployment
    }
    /// The source is a backend.
    23 FromBackend "from_backend" {
        /// Slot of `backends`.
        slot
    }
    /// The packet is no reply of a flow.
    24 NoReply "no_reply" {}
    /// It belongs to a connection that the client has with the backend without the virtual address.
    25 Foreign "foreign" {}
    /// The preview address that the client has sent to was removed.
    26 VipGone "vip_gone" {}
    /// A reset that refuses a connection that was picked up in mid-stream. The client shall not hear it.
    27 Refusal "refusal" {}
    /// The source becomes this virtual address.
    28 Restored "restored" {
        /// Row of `vips`.
        row
    }
    /// The backend is an address of this host.
    29 Local "local" {}
    /// The client is this host.
    30 Own "own" {}
    /// The TTL or hop limit is spent.
    31 TtlSpent "ttl_spent" {}
    /// The next hop is known.
    32 CachedHop "cached_hop" {
        /// See [`bg_common::NextHop`].
        ifindex_and_dmac,
        /// See [`bg_common::NextHop`].
        mtu_and_smac
    }
    /// The kernel's routes were asked for the next hop.
    33 Route "route" {
        /// See [`bg_common::NextHop`].
        ifindex_and_dmac,
        /// See [`bg_common::NextHop`].
        mtu_and_smac
    }
    /// The host's stack has to send the packet.
    34 ByStack "by_stack" {
        /// [`bg_common::Event`]: why.
        event
    }
    /// XDP cannot redirect to the interface.
    35 NoRedirect "no_redirect" {
        /// The interface.
        ifindex
    }
    /// XDP leaves the packet to tc, so that the kernel sees that the neighbour is in use.
    36 Asks "asks" {}
    /// The egress program of the interface that the packet leaves by restores its source.
    37 ForEgress "for_egress" {}
    /// An event is counted.
    38 Counted "counted" {
        /// [`bg_common::Event`].
        event
    }
    /// The live word changes by itself.
    39 Settled "settled" {
        /// Index of the deployment.
        deployment,
        /// The word as it stands there.
        word,
        /// The word in force.
        in_force
    }
    /// XDP leaves datagrams of a service with a mirror to tc, which can send a frame twice.
    41 MirrorByTc "mirror_by_tc" {}
    /// A copy goes to the idle colour.
    42 Mirror "mirror" {
        /// The colour.
        colour
    }
    /// A backend of the idle colour answers a copy, or an ICMP error is about one.
    43 MirrorAnswer "mirror_answer" {
        /// Row of `vips`: the virtual address of the datagram.
        row
    }
    /// What becomes of the packet at this hook.
    40 Verdict "verdict" {
        /// [`crate::Action`].
        action,
        /// The interface that it leaves by.
        ifindex
    }
    /// The packet goes to a backend that replies to the client directly.
    46 Outer "outer" {
        /// [`bg_common::Mode`].
        mode,
        /// Slot of `backends`.
        slot,
        /// Bytes of the outer headers.
        room
    }
    /// A command has ended the flow.
    44 EndedByCommand "ended_by_command" {}
    /// The deployment is frozen.
    45 Waits "waits" {
        /// Index of the deployment.
        deployment
    }
}
