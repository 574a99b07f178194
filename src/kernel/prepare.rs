//! Compiles what a plan needs before it is used.

use super::variants;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::plan::Plan;

impl Gpu {
    /// Compiles every pipeline that a cache of this plan can use, on all processors, so that the
    /// first token waits for none.
    ///
    /// # Errors
    /// [`Error::Shader`](crate::Error::Shader) with the compiler's message and the place in the
    /// shader's source; [`Error::Lost`](crate::Error::Lost).
    pub async fn prepare(&self, plan: &Plan) -> Result<()> {
        self.prepare_variants(variants(plan)).await
    }
}
