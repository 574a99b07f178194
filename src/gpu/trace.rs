//! Reports to `tracing`, with the feature of that name: spans around what is recorded, and events
//! with the numbers that a server watches. Without the feature none of it is compiled.

/// An event of target `wgkv`.
macro_rules! event {
    ($level:ident, $($fields:tt)+) => {{
        #[cfg(feature = "tracing")]
        tracing::event!(target: "wgkv", tracing::Level::$level, $($fields)+);
    }};
}

/// A span of target `wgkv`, until the guard that it returns is dropped.
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

/// Stands for a span where there is none.
#[cfg(not(feature = "tracing"))]
pub(crate) struct NoSpan;
