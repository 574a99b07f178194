//! Prefixes that many caches share: snapshots in a store of objects, under the hash of what they
//! hold.

use super::kept::PrefixPlan;
use super::prefix_index::name;
use crate::error::{Error, Result};
use crate::format::tensors;
pub use object_store;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::sync::Arc;

/// Snapshots by the tokens that they are of, in a folder or in whatever [`object_store`] reaches:
/// S3 and what speaks its language, Google's and Azure's stores (feature `store-cloud`).
///
/// A snapshot's name is the SHA-256 of model, [plan](crate::Plan::fingerprint), what was learned
/// ([order](crate::ChannelOrder::fingerprint) or [means](crate::Means::fingerprint)) and tokens, so
/// a cache with the same prefix finds it, and no other. Any number of programs may write at once:
/// an object becomes visible whole or not at all, and writers of one name write the same. Nothing
/// is deleted here: let the store's rules expire what is old.
///
/// A store that is reached over a network tries each request again as its own `RetryConfig` says:
/// 10 times within 3 minutes unless set otherwise. A request may take as long as its
/// `ClientOptions` allow: 30 seconds unless set otherwise, in which a whole snapshot must go up.
/// One request writes a snapshot, which S3 limits to 5 GiB.
///
/// ```no_run
/// use std::sync::Arc;
/// use wgkv::{Cache, Chunk, Result, Sequence};
/// use wgkv::prefix::SnapshotStore;
///
/// /// The sequence of a prompt's first tokens, from the store if it has them.
/// async fn prefix(store: &SnapshotStore, cache: &mut Cache, tokens: &[u32]) -> Result<Option<Sequence>> {
///     let Some(bytes) = store.get(cache.plan(), tokens).await? else {
///         return Ok(None); // compute it, and then: store.put(cache.plan(), tokens, cache.save(sequence).await?).await?
///     };
///     let mut encoder = cache.gpu().device().create_command_encoder(&Default::default());
///     let sequence = cache.load(&mut encoder, &bytes)?;
///     cache.gpu().queue().submit([encoder.finish()]);
///     Ok(Some(sequence))
/// }
/// ```
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    objects: Arc<dyn ObjectStore>,
    folder: Path,
    model: String,
}

impl SnapshotStore {
    /// Opens a folder of the caller's store; `""` for its root. `model` names the weights (their
    /// hash, say): caches of two models may have the same plan.
    ///
    /// Stores that are reached over a network need a runtime of tokio around the calls.
    pub fn new(objects: Arc<dyn ObjectStore>, folder: &str, model: &str) -> Self {
        Self { objects, folder: Path::from(folder), model: model.to_owned() }
    }

    /// Opens a folder of this machine, which is made if it is not there.
    ///
    /// # Errors
    /// [`Error::Store`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn local(folder: impl AsRef<std::path::Path>, model: &str) -> Result<Self> {
        let folder = folder.as_ref();
        let wrong = |e: &dyn std::error::Error| error("opening", folder.display(), e);
        std::fs::create_dir_all(folder).map_err(|e| wrong(&e))?;
        let objects = object_store::local::LocalFileSystem::new_with_prefix(folder).map_err(|e| wrong(&e))?;
        Ok(Self::new(Arc::new(objects), "", model))
    }

    /// Returns where the store has, or would have, the snapshot of these tokens.
    pub fn place(&self, plan: &impl PrefixPlan, tokens: &[u32]) -> Path {
        let name = tensors::hex(&name(&self.model, plan, tokens));
        self.folder.clone().join(format!("{name}.safetensors"))
    }

    /// Stores a snapshot of a sequence of these tokens. One that was there before is replaced.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for bytes that a cache of this plan would not load, or of another number
    /// of tokens; [`Error::Store`].
    pub async fn put(&self, plan: &impl PrefixPlan, tokens: &[u32], snapshot: Vec<u8>) -> Result<()> {
        plan.check_snapshot(tokens.len(), &snapshot)?;
        let place = self.place(plan, tokens);
        // Whole or not at all, and with no condition: what is there can only be the same, or
        // damaged.
        self.objects.put(&place, snapshot.into()).await.map_err(|e| error("writing", &place, &e))?;
        Ok(())
    }

    /// Returns the snapshot of a sequence of these tokens, for [`Cache::load`](crate::Cache::load)
    /// or [`LayeredCache::load`](crate::layers::LayeredCache::load), whichever the plan is of; none
    /// if the store has none.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for one that is damaged, which [`SnapshotStore::put`] would replace;
    /// [`Error::Store`].
    pub async fn get(&self, plan: &impl PrefixPlan, tokens: &[u32]) -> Result<Option<Vec<u8>>> {
        let place = self.place(plan, tokens);
        let read = async { self.objects.get(&place).await?.bytes().await };
        match read.await {
            Ok(bytes) => plan.check_snapshot(tokens.len(), &bytes).map(|()| Some(bytes.into())),
            Err(e @ object_store::Error::NotFound { .. }) if !is_bucket_missing(&e) => Ok(None),
            Err(e) => Err(error("reading", &place, &e)),
        }
    }

    /// Returns whether the store has a snapshot of these tokens. It may be damaged, or the whole
    /// bucket missing, which only [`SnapshotStore::get`] finds.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn has(&self, plan: &impl PrefixPlan, tokens: &[u32]) -> Result<bool> {
        let place = self.place(plan, tokens);
        match self.objects.head(&place).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(error("looking for", &place, &e)),
        }
    }
}

/// Returns whether the bucket itself is missing. Stores say so in the text of their answer only:
/// the first code is S3's and Google's.
fn is_bucket_missing(e: &object_store::Error) -> bool {
    let message = e.to_string();
    ["NoSuchBucket", "ContainerNotFound"].iter().any(|code| message.contains(&format!("<Code>{code}</Code>")))
}

fn error(doing: &'static str, place: impl ToString, e: &dyn std::error::Error) -> Error {
    Error::Store { doing, place: place.to_string(), message: e.to_string() }
}
