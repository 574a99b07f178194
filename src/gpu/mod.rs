//! The device, what it can do, and the pipelines made on it.

mod capability;
mod loss;
mod matrices;
mod pipeline;
mod profile;
mod rows;
mod shader;
pub(crate) mod trace;

pub use capability::{Capability, Reduce};
pub use pipeline::Pipeline;
pub(crate) use pipeline::bind_group;
pub use profile::Profile;
pub(crate) use rows::{Placed, RowShape, expect_apart};
pub use rows::{RowForm, RowLayout, Rows, Strides};
pub use shader::{Binding, Bindings, Dialect, Kernel, Linked, Source, Variant};

use crate::error::{Error, Result};
use loss::Loss;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device with its queue, what it can do, and the pipelines made on it so far. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    capability: Capability,
    adapter_name: String,
    pipelines: Arc<Mutex<HashMap<Variant, Pipeline>>>,
    profile: Option<Arc<Profile>>,
    /// The driver's compiled form of the pipelines.
    pipeline_cache: Option<wgpu::PipelineCache>,
    loss: Arc<Loss>,
    made: Arc<Made>,
}

/// How many buffers and bind groups were made, for tests of what a step costs.
#[derive(Debug, Default)]
struct Made {
    buffers: AtomicU64,
    bind_groups: AtomicU64,
}

/// Locks a mutex, poisoned or not: a panic elsewhere leaves nothing here half changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Wraps a device and queue of the caller's. The device keeps the caller's error and loss
    /// handlers: wgkv installs none. wgpu has a single callback for the loss of a device, so have
    /// yours call [`Gpu::report_loss`].
    pub fn new(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let info = device.adapter_info();
        Self {
            capability: Capability::of(&device),
            adapter_name: info.name,
            device,
            queue,
            pipelines: Arc::default(),
            profile: None,
            pipeline_cache: None,
            loss: Arc::default(),
            made: Arc::default(),
        }
    }

    /// Requests a device, for programs that have none: that of the adapter named by the environment
    /// variable `WGPU_ADAPTER_NAME` (part of its name) or of the fastest one, with all its limits
    /// and the features that the kernels use. Its loss callback is wgkv's: check [`Gpu::lost`], or
    /// await [`Gpu::until_lost`].
    ///
    /// # Errors
    /// [`Error::NoAdapter`] and [`Error::Device`].
    pub async fn request() -> Result<Self> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let adapter = Self::request_adapter(&instance).await?;
        Self::of(&adapter).await
    }

    /// Requests a device as [`Gpu::request`] does, of the first adapter whose name contains `name`,
    /// in any case. The environment does not count.
    ///
    /// # Errors
    /// [`Error::NoAdapter`], with the names that there are, and [`Error::Device`].
    #[cfg(not(target_arch = "wasm32"))]
    pub async fn request_named(name: &str) -> Result<Self> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let adapter = Self::adapter_named(&instance, name).await?;
        Self::of(&adapter).await
    }

    /// Requests a device on every GPU of the host, for a cache over all of them
    /// ([`HeadParallel`](crate::devices::HeadParallel)): those that the backend of [`Gpu::request`]
    /// reaches, without software adapters unless there is nothing else.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] and [`Error::Device`].
    #[cfg(not(target_arch = "wasm32"))]
    pub async fn request_all() -> Result<Vec<Self>> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let first = Self::request_adapter(&instance).await?.get_info();
        let mut gpus = Vec::new();
        for adapter in instance.enumerate_adapters(first.backend.into()).await {
            if (adapter.get_info().device_type == wgpu::DeviceType::Cpu) == (first.device_type == wgpu::DeviceType::Cpu) {
                gpus.push(Self::of(&adapter).await?);
            }
        }
        Ok(gpus)
    }

    /// Requests a device with all limits of an adapter, and the features that the kernels use;
    /// cooperative matrices only if one product comes out right.
    async fn of(adapter: &wgpu::Adapter) -> Result<Self> {
        if matrices::offered(adapter)
            && let Ok(gpu) = Self::of_with(adapter, matrices::FEATURES).await
            && matrices::multiply(&gpu).await
        {
            return Ok(gpu.with_matrices());
        }
        Self::of_with(adapter, wgpu::Features::empty()).await
    }

    /// Requests a device with all limits of an adapter, the features that the kernels use, and
    /// these.
    async fn of_with(adapter: &wgpu::Adapter, features: wgpu::Features) -> Result<Self> {
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("wgkv"),
            required_features: adapter.features()
                & (wgpu::Features::SHADER_F16
                    | wgpu::Features::SUBGROUP
                    | wgpu::Features::PIPELINE_CACHE
                    | wgpu::Features::TIMESTAMP_QUERY
                    | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES)
                | features,
            required_limits: adapter.limits(),
            experimental_features: matrices::token(features),
            ..Default::default()
        };
        let (device, queue) = adapter.request_device(&descriptor).await.map_err(|e| Error::Device(e.to_string()))?;
        let gpu = Self::new(device, queue);
        let loss = gpu.loss.clone();
        gpu.device.set_device_lost_callback(move |reason, message| loss.report(if message.is_empty() { format!("{reason:?}") } else { message }));
        Ok(gpu)
    }

    /// Reports that the device was lost, and why. For callers of [`Gpu::new`], from their callback
    /// or when they notice it otherwise; every clone then knows. The first reason stays.
    pub fn report_loss(&self, reason: impl Into<String>) {
        self.loss.report(reason.into());
    }

    /// Returns why the device was lost, if it is known to be. Nothing that lies on it can be
    /// recovered then: make another [`Gpu`] and other caches, and [load](crate::Cache::load) what
    /// was saved.
    ///
    /// wgpu reports a loss when the device fails at something, or when it is polled and has nothing
    /// left to do. What is recorded between the loss and the report is not carried out.
    pub fn lost(&self) -> Option<&str> {
        self.loss.reason()
    }

    /// Waits until the device is lost, and returns why.
    pub fn until_lost(&self) -> impl Future<Output = String> + use<> {
        self.loss.clone().wait()
    }

    /// Fails with [`Error::Lost`] if the device is lost.
    pub(crate) fn alive(&self) -> Result<()> {
        self.lost().map_or(Ok(()), |reason| Err(Error::Lost { reason: reason.to_owned() }))
    }

    /// Opens an error scope in which [`enough`] finds whether the device had memory for what is
    /// made.
    pub(crate) fn watch_memory(&self) -> wgpu::ErrorScopeGuard {
        self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory)
    }

    /// Returns the adapter that [`Gpu::request`] uses.
    ///
    /// # Errors
    /// [`Error::NoAdapter`].
    pub async fn request_adapter(instance: &wgpu::Instance) -> Result<wgpu::Adapter> {
        #[cfg(not(target_arch = "wasm32"))]
        if let Ok(wanted) = std::env::var("WGPU_ADAPTER_NAME") {
            return Self::adapter_named(instance, &wanted).await;
        }
        let options = wgpu::RequestAdapterOptions { power_preference: wgpu::PowerPreference::HighPerformance, ..Default::default() };
        instance.request_adapter(&options).await.map_err(|e| Error::NoAdapter(e.to_string()))
    }

    #[cfg(not(target_arch = "wasm32"))]
    async fn adapter_named(instance: &wgpu::Instance, wanted: &str) -> Result<wgpu::Adapter> {
        let wanted = wanted.to_lowercase();
        let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
        let names: Vec<String> = adapters.iter().map(|a| a.get_info().name).collect();
        adapters
            .into_iter()
            .find(|a| a.get_info().name.to_lowercase().contains(&wanted))
            .ok_or_else(|| Error::NoAdapter(format!("none of {names:?} is called {wanted:?}")))
    }

    /// Returns the same device, treated as if it could do no more than `capability` says, so that
    /// the portable variants can be tested on a capable machine. Nothing is claimed that the device
    /// cannot do.
    pub fn pretend(&self, capability: Capability) -> Self {
        Self { capability: self.capability.at_most(capability), pipelines: Arc::default(), ..self.clone() }
    }

    /// Returns the same device, whose shaders may use subgroup operations although wgpu does not
    /// report them: in browsers it cannot request the feature. For callers who know that their
    /// device has it; nothing changes where the adapter does not report its subgroup sizes.
    pub fn with_subgroups(&self) -> Self {
        let info = self.device.adapter_info();
        let sizes = Some((info.subgroup_min_size, info.subgroup_max_size)).filter(|(smallest, _)| *smallest > 0);
        let capability = Capability { subgroups: self.capability.subgroups.or(sizes), ..self.capability };
        Self { capability, pipelines: Arc::default(), ..self.clone() }
    }

    /// Returns the same device, whose shaders may multiply cooperative matrices of 16 x 16 halves
    /// into f32. For callers of [`Gpu::new`] who know that their adapter lists these sizes and types
    /// (`wgpu::Adapter::cooperative_matrix_properties`); nothing changes unless the device was made
    /// with the features `EXPERIMENTAL_COOPERATIVE_MATRIX`, `SHADER_F16` and `SUBGROUP`, and has
    /// subgroups of 32 lanes. [`Gpu::request`] does this by itself.
    ///
    /// wgpu calls the feature experimental, since not all that it compiles is checked: a driver may
    /// crash or compute something else. [`Gpu::request`] tries one product before it trusts them,
    /// and with the environment variable `WGKV_MATRICES=off` it does not ask for them.
    pub fn with_matrices(&self) -> Self {
        let has = self.device.features().contains(matrices::FEATURES) && self.capability.subgroups == Some((32, 32));
        Self { capability: Capability { matrices: has, ..self.capability }, pipelines: Arc::default(), ..self.clone() }
    }

    /// Returns the same device with a pipeline cache: pipelines are made from what
    /// [`Gpu::pipeline_cache`] returned in an earlier run, as far as the driver accepts it, and
    /// what is compiled is kept for the next. Most drivers already keep such files themselves.
    ///
    /// # Safety
    /// `earlier` must be what [`Gpu::pipeline_cache`] returned, unchanged: drivers need not check
    /// it. Data of another adapter or driver, or of another version of this crate, is ignored.
    ///
    /// # Errors
    /// [`Error::Device`] without the feature `pipeline-cache` (wgpu has it on Vulkan only).
    pub unsafe fn with_pipeline_cache(&self, earlier: Option<&[u8]>) -> Result<Self> {
        if !self.device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return Err(Error::Device("the device was made without the feature pipeline-cache".into()));
        }
        let descriptor = wgpu::PipelineCacheDescriptor { label: Some("wgkv"), data: earlier, fallback: true };
        // SAFETY: the caller vouches for the data.
        let pipeline_cache = unsafe { self.device.create_pipeline_cache(&descriptor) };
        Ok(Self { pipeline_cache: Some(pipeline_cache), pipelines: Arc::default(), ..self.clone() })
    }

    /// Returns the driver's compiled form of the pipelines so far, if this device was made by
    /// [`Gpu::with_pipeline_cache`].
    pub fn pipeline_cache(&self) -> Option<Vec<u8>> {
        self.pipeline_cache.as_ref().and_then(wgpu::PipelineCache::get_data)
    }

    /// Returns the same device, with timestamps around the first `dispatches` dispatches of the
    /// caches made on it.
    ///
    /// # Errors
    /// [`Error::Device`] without the feature `timestamp-query-inside-passes` (wgpu has it on native
    /// adapters only).
    pub fn profiled(&self, dispatches: u32) -> Result<Self> {
        Ok(Self { profile: Some(Arc::new(Profile::new(&self.device, dispatches)?)), ..self.clone() })
    }

    /// Returns the timestamps, if the device was made by [`Gpu::profiled`].
    pub fn profile(&self) -> Option<&Profile> {
        self.profile.as_deref()
    }

    /// Returns the device.
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// Returns the queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// Returns what the device can do, as far as the kernels are concerned.
    pub fn capability(&self) -> &Capability {
        &self.capability
    }

    /// Returns the adapter's name.
    pub fn adapter_name(&self) -> &str {
        &self.adapter_name
    }

    /// Compiles those of the variants that are not compiled yet, several at a time.
    ///
    /// # Errors
    /// [`Error::Shader`] with the compiler's message, [`Error::Lost`].
    pub async fn prepare_variants(&self, variants: Vec<Variant>) -> Result<()> {
        self.alive()?;
        let mut missing: Vec<Variant> = Vec::new();
        for variant in variants {
            if self.known(&variant).is_none() && !missing.contains(&variant) {
                missing.push(variant);
            }
        }
        for (variant, pipeline, error) in self.compile(missing) {
            if let Some(error) = error.await {
                let message = variant.link(self.capability.dialect).locate(&error.to_string());
                return Err(Error::Shader { kernel: variant.to_string(), message });
            }
            self.remember(variant, pipeline);
        }
        Ok(())
    }

    /// Compiles variants, and returns each with the compiler's result.
    #[cfg(not(target_arch = "wasm32"))]
    fn compile(&self, variants: Vec<Variant>) -> Vec<(Variant, Pipeline, impl Future<Output = Option<wgpu::Error>> + use<>)> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(variants.len());
        let (waiting, compiled) = (Mutex::new(variants), Mutex::new(Vec::new()));
        let work = || {
            while let Some(variant) = locked(&waiting).pop() {
                let (pipeline, error) = self.compile_one(&variant);
                locked(&compiled).push((variant, pipeline, error));
            }
        };
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
        compiled.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compiles variants, and returns each with the compiler's result, for which the browser has
    /// processes of its own.
    #[cfg(target_arch = "wasm32")]
    fn compile(&self, variants: Vec<Variant>) -> Vec<(Variant, Pipeline, impl Future<Output = Option<wgpu::Error>> + use<>)> {
        let one = |variant: Variant| {
            let (pipeline, error) = self.compile_one(&variant);
            (variant, pipeline, error)
        };
        variants.into_iter().map(one).collect()
    }

    fn compile_one(&self, variant: &Variant) -> (Pipeline, impl Future<Output = Option<wgpu::Error>> + use<>) {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let pipeline = self.compiled(variant);
        (pipeline, scope.pop())
    }

    fn compiled(&self, variant: &Variant) -> Pipeline {
        Pipeline::new(&self.device, variant, self.capability.dialect, self.pipeline_cache.as_ref())
    }

    /// Returns the pipeline of a variant, and makes it now if it was not prepared.
    pub fn pipeline(&self, variant: &Variant) -> Pipeline {
        if let Some(pipeline) = self.known(variant) {
            return pipeline;
        }
        let pipeline = self.compiled(variant);
        self.remember(variant.clone(), pipeline.clone());
        pipeline
    }

    fn known(&self, variant: &Variant) -> Option<Pipeline> {
        locked(&self.pipelines).get(variant).cloned()
    }

    fn remember(&self, variant: Variant, pipeline: Pipeline) {
        locked(&self.pipelines).insert(variant, pipeline);
    }

    /// Waits for all submitted work and copies `words` 32-bit words of a buffer (made with usage
    /// `COPY_SRC`) to the host.
    ///
    /// # Errors
    /// [`Error::Lost`] and [`Error::Readback`].
    pub async fn read(&self, buffer: &wgpu::Buffer, offset: u64, words: u64) -> Result<Vec<u32>> {
        self.alive()?;
        if words == 0 {
            return Ok(Vec::new());
        }
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("wgkv readback") });
        let all = offset..offset + 4 * words;
        let pieces = std::slice::from_ref(&all);
        let staging = self.staging(pieces);
        Self::gather(&mut encoder, buffer, pieces, &staging);
        self.queue.submit([encoder.finish()]);
        self.fetch(&staging).await
    }

    /// Makes a buffer that [`Gpu::gather`] can write these pieces to and [`Gpu::fetch`] reads. The
    /// pieces must not all be empty.
    pub(crate) fn staging(&self, pieces: &[Range<u64>]) -> wgpu::Buffer {
        self.create_buffer(&wgpu::BufferDescriptor {
            label: Some("wgkv readback"),
            size: pieces.iter().map(|piece| piece.end - piece.start).sum(),
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        })
    }

    /// Records the copy of pieces of a buffer, one after another.
    pub(crate) fn gather(encoder: &mut wgpu::CommandEncoder, buffer: &wgpu::Buffer, pieces: &[Range<u64>], staging: &wgpu::Buffer) {
        let mut at = 0;
        for piece in pieces {
            encoder.copy_buffer_to_buffer(buffer, piece.start, staging, at, piece.end - piece.start);
            at += piece.end - piece.start;
        }
    }

    /// Makes a buffer, and counts it.
    pub(crate) fn create_buffer(&self, descriptor: &wgpu::BufferDescriptor<'_>) -> wgpu::Buffer {
        self.made.buffers.fetch_add(1, Ordering::Relaxed);
        self.device.create_buffer(descriptor)
    }

    /// Makes a bind group, and counts it.
    pub(crate) fn create_bind_group(&self, descriptor: &wgpu::BindGroupDescriptor<'_>) -> wgpu::BindGroup {
        self.made.bind_groups.fetch_add(1, Ordering::Relaxed);
        self.device.create_bind_group(descriptor)
    }

    /// Returns how many buffers and bind groups wgkv has made on this device so far.
    #[doc(hidden)]
    pub fn made(&self) -> [u64; 2] {
        [&self.made.buffers, &self.made.bind_groups].map(|count| count.load(Ordering::Relaxed))
    }

    /// Makes the layout of a bind group.
    pub(crate) fn group_layout(&self, label: &'static str, group: Bindings) -> wgpu::BindGroupLayout {
        pipeline::group_layout(&self.device, label, group)
    }

    /// Makes a buffer with these contents. wgpu's `create_buffer_init` does the same, but panics on
    /// a lost device.
    pub(crate) fn filled(&self, label: &'static str, contents: &[u8], usage: wgpu::BufferUsages) -> wgpu::Buffer {
        let mapped_at_creation = !contents.is_empty();
        let buffer = self.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size: contents.len() as u64, usage, mapped_at_creation });
        if mapped_at_creation && let Ok(mut view) = buffer.get_mapped_range_mut(..) {
            view.copy_from_slice(contents);
            drop(view);
            buffer.unmap();
        }
        buffer
    }

    /// Makes a small uniform buffer with these contents.
    pub(crate) fn uniform(&self, bytes: &[u8]) -> wgpu::Buffer {
        self.filled("wgkv params", bytes, wgpu::BufferUsages::UNIFORM)
    }

    /// Waits for all submitted work and returns what it copied to a staging buffer.
    pub(crate) async fn fetch(&self, staging: &wgpu::Buffer) -> Result<Vec<u32>> {
        let (sender, receiver) = futures::channel::oneshot::channel();
        // Mapping a buffer of a lost device is an error that the device's handlers need not see:
        // the callback reports it.
        {
            let _scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
            staging.map_async(wgpu::MapMode::Read, .., move |result| {
                // The receiver is gone only if the caller dropped the future; then nobody waits for
                // the result.
                let _ = sender.send(result);
            });
        }
        // A device that cannot map may be lost, which is known after the wait.
        let failed = |e: &dyn std::error::Error| self.alive().err().unwrap_or_else(|| Error::Readback(e.to_string()));
        self.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| failed(&e))?;
        receiver.await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
        let view = staging.get_mapped_range(..).map_err(|e| failed(&e))?;
        let numbers = bytemuck::pod_collect_to_vec(&view);
        drop(view);
        // A browser would otherwise keep the memory until its garbage collector runs.
        staging.destroy();
        Ok(numbers)
    }
}

/// Fails if there was no memory for `need` bytes since [`Gpu::watch_memory`]. Natively the result
/// is there at once.
pub(crate) fn enough(scope: wgpu::ErrorScopeGuard, need: u64) -> impl Future<Output = Result<()>> {
    let refused = scope.pop();
    async move { refused.await.map_or(Ok(()), |_| Err(Error::Memory { need })) }
}

/// Returns a grid of two dimensions that holds `count` workgroups where one dimension holds `most`.
pub(crate) fn fold(count: u32, most: u32) -> [u32; 2] {
    let down = count.div_ceil(most).max(1);
    [count.div_ceil(down), down]
}
