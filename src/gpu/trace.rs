//! What `tracing` is told, with the feature of that name: spans around what is recorded, events with the numbers that a program that serves
//! watches. Without the feature nothing is compiled of it.

/// An event of target `wgkv`.
macro_rules! event {
    ($level:ident, $($fields:tt)+) => {{
        #[cfg(feature = "tracing")]
        tracing::event!(target: "wgkv", tracing::Level::$level, $($fields)+);
    }};
}

/// A span of target `wgkv`, until what it gives is dropped.
macro_rules! span {
    ($name:literal, $($fields:tt)+) => {{
        #[cfg(feature = "tracing")]
        let entered = tracing::debug_span!(target: "wgkv", $name, $($fields)+).entered();
        #[cfg(not(feature = "tracing"))]
        let entered = crate::gpu::trace::NoSpan;
        entered
    }};
}

pub(crate) use {event, span};

/// What stands for a span where there is none.
#[cfg(not(feature = "tracing"))]
pub(crate) struct NoSpan;
