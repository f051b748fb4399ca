//! What the engine does aside, as global functions: the verifier looks at each once, whoever calls it.

use super::world::World;
use bg_ebpf::{
    desk::Desk,
    forward,
    headers::{V4, V6},
    reply,
    tables::Aside,
};

/// The world of a function that needs neither packet nor hook.
const WORLD: World<true> = World { context: core::ptr::null_mut() };

macro_rules! aside {
    ($version:ty, $($name:ident: $function:ident = $engine:path),+) => {
        $(
            /// # Safety
            ///
            /// The desk must be a reference, or null, which the verifier wants to see ruled out.
            #[unsafe(no_mangle)]
            #[inline(never)]
            unsafe extern "C" fn $function(desk: *mut Desk<$version>) -> u32 {
                if desk.is_null() {
                    return 0;
                }
                // SAFETY: the caller's reference.
                $engine(unsafe { &mut *desk }, &WORLD) as u32
            }
        )+

        impl<const XDP: bool> Aside<$version> for World<XDP> {
            $(
                #[inline(always)]
                fn $name(&self, desk: &mut Desk<$version>) -> u32 {
                    // SAFETY: a reference.
                    unsafe { $function(desk) }
                }
            )+
        }
    };
}

aside!(V4,
    stay: stay4 = forward::stay,
    choose_colour: choose_colour4 = forward::choose_colour,
    choose_backend: choose_backend4 = forward::choose_backend,
    reply_place: reply_place4 = forward::reply_place,
    answer: answer4 = reply::answer
);
aside!(V6,
    stay: stay6 = forward::stay,
    choose_colour: choose_colour6 = forward::choose_colour,
    choose_backend: choose_backend6 = forward::choose_backend,
    reply_place: reply_place6 = forward::reply_place,
    answer: answer6 = reply::answer
);
