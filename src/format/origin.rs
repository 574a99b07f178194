//! What bits and what was learned or measured are of: a model of one name and shape.

use crate::error::{Error, Result, Thing};
use crate::format::Shape;

/// Refuses another model than the one that a thing is of.
pub(crate) fn expect_model(thing: Thing, model: &str, had: &str) -> Result<()> {
    if had == model { Ok(()) } else { Err(Error::mismatch(thing, "model", format!("{model:?}"), format!("{had:?}"))) }
}

/// Refuses a shape of other layers, KV heads and head dimension than those that a thing is of.
pub(crate) fn expect_shape(thing: Thing, shape: &Shape, had: [u32; 3]) -> Result<()> {
    for ((name, wanted), had) in [("layers", shape.layers), ("kv_heads", shape.kv_heads), ("head_dim", shape.head_dim)].into_iter().zip(had) {
        if wanted != had {
            return Err(Error::mismatch(thing, name, wanted, had));
        }
    }
    Ok(())
}
