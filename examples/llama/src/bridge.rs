//! One wgpu device for burn and wgkv, and burn's tensors as buffers that a compute pass can bind.
//!
//! burn (through cubecl) records its kernels on a thread of its own and submits them in batches. Both sides use one
//! queue, so order on the queue is all the synchronisation there is:
//!
//! 1. [`Bridge::view`] asks cubecl where a tensor lies, which also makes cubecl record everything that computes it;
//! 2. [`Bridge::flush`] makes cubecl submit what it recorded;
//! 3. the caller submits its own encoder, which reads and writes the viewed buffers;
//! 4. whatever burn records later is submitted later, so it sees the result.
//!
//! No byte is copied. A [`View`] holds cubecl's handle, so the memory is not handed out again while the view lives, and
//! after our submission the queue's order protects it. The device is registered with
//! `MemoryConfiguration::ExclusivePages` for two reasons: such memory is never moved behind our back, and each tensor
//! has a buffer of its own, where wgpu, which judges aliasing by whole buffers, would refuse a pass that reads queries
//! and writes its output in one pooled buffer.
//!
//! cubecl keeps one stream of work per thread: tensors must be used on the thread that flushes them.

use burn::backend::wgpu::{CubeTensor, MemoryConfiguration, Wgpu, WgpuResource};
use burn::cubecl::client::Client;
use burn::cubecl::server::Handle;
use burn::cubecl::wgpu::{AutoCompiler, WgpuServer};
use burn::tensor::wgpu::WgpuSetup;
use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};
use wgkv::{Element, Gpu, Rows};

use crate::error::{Error, Result};

/// A device that burn and wgkv share.
pub struct Bridge {
    gpu: Gpu,
    device: Device,
    client: Client,
    adapter: String,
}

/// Where a contiguous f32 tensor lies, and the handle that keeps the memory taken.
pub struct View {
    resource: WgpuResource,
    _handle: Handle,
}

impl Bridge {
    /// Opens the adapter whose name contains `name` (in any case) and gives its device to burn and wgkv. Without a name
    /// it is the one that [`Gpu::request_adapter`] chooses.
    pub fn open(name: Option<&str>) -> Result<Self> {
        pollster::block_on(Self::open_async(name))
    }

    async fn open_async(name: Option<&str>) -> Result<Self> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let adapter = find_adapter(&instance, name).await?;
        // burn chooses kernels by what the adapter has, not by what the device was asked for: everything must be on.
        // Experimental features need an unsafe token, and mappable primary buffers make every buffer slower.
        let features = adapter.features().difference(wgpu::Features::all_experimental_mask()).difference(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS);
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("wgkv-llama"),
                required_features: features,
                required_limits: adapter.limits(),
                ..Default::default()
            })
            .await
            .map_err(|error| Error::Gpu(error.to_string()))?;
        let info = adapter.get_info();
        let gpu = Gpu::new(device.clone(), queue.clone());
        let burn_device = Device::wgpu_options()
            .setup(WgpuSetup { instance, backend: info.backend, adapter, device, queue })
            .memory_config(MemoryConfiguration::ExclusivePages)
            .init()
            .map_err(|error| Error::Burn(error.to_string()))?;
        // burn's public device has no road to its client; any tensor does.
        let client = primitive(Tensor::<1>::empty([1], &burn_device))?.client;
        Ok(Self { gpu, device: burn_device, client, adapter: info.name })
    }

    /// The device as wgkv sees it.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The device as burn sees it.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The adapter's name.
    pub fn adapter(&self) -> &str {
        &self.adapter
    }

    /// The most f32 elements that one tensor may have.
    pub fn tensor_limit(&self) -> usize {
        let limits = self.gpu.device().limits();
        let bytes = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        (bytes / 4) as usize
    }

    /// Uploads a matrix that stays: cubecl gives it memory of exactly its size instead of a rounded page.
    pub fn upload(&self, values: Vec<f32>, shape: [usize; 2]) -> Tensor<2> {
        let device = self.device.clone();
        self.client.memory_persistent_allocation(values, move |values| Tensor::from_data(TensorData::new(values, shape), &device))
    }

    /// A matrix of random f16 numbers that stays, in memory of exactly its size: normal with mean 0 and this deviation.
    pub fn random_f16(&self, shape: [usize; 2], spread: f64) -> Tensor<2> {
        let device = self.device.clone();
        self.client.memory_persistent_allocation((), move |()| Tensor::random(shape, Distribution::Normal(0.0, spread), (&device, DType::F16)))
    }

    /// Gives back memory that burn keeps for tensors which are gone.
    pub fn clean(&self) -> Result<()> {
        self.flush()?;
        self.client.memory_cleanup().map_err(|error| Error::Burn(error.to_string()))
    }

    /// The buffer behind a tensor, which is copied first only where its rows are not contiguous.
    pub fn view(&self, tensor: Tensor<2>) -> Result<View> {
        let tensor = contiguous(primitive(tensor)?);
        let wanted = (tensor.meta.shape().iter().product::<usize>() * 4) as u64;
        let handle = tensor.handle;
        let resource = self.client.get_resource::<WgpuServer<AutoCompiler>>(handle.clone()).map_err(|error| Error::Burn(error.to_string()))?.resource().clone();
        let found = resource.size;
        if found < wanted {
            return Err(Error::Burn(format!("a tensor of {wanted} bytes lies in a buffer range of {found}")));
        }
        Ok(View { resource, _handle: handle })
    }

    /// A tensor for a compute pass to write, and its buffer. Its content is arbitrary until then.
    pub fn output(&self, rows: usize, width: usize) -> Result<(Tensor<2>, View)> {
        let tensor = Tensor::empty([rows, width], &self.device);
        let view = self.view(tensor.clone())?;
        Ok((tensor, view))
    }

    /// Submits all of burn's recorded work to the shared queue.
    pub fn flush(&self) -> Result<()> {
        self.client.flush().map_err(|error| Error::Burn(error.to_string()))
    }
}

impl View {
    /// The rows as wgkv takes them.
    pub fn rows(&self) -> Rows<'_> {
        Rows { buffer: &self.resource.buffer, offset: self.resource.offset, element: Element::F32 }
    }
}

fn primitive<const D: usize>(tensor: Tensor<D>) -> Result<CubeTensor> {
    tensor.try_into_primitive::<Wgpu>().map_err(|error| Error::Burn(format!("{error:?}")))
}

fn contiguous(tensor: CubeTensor) -> CubeTensor {
    if tensor.is_contiguous() && !tensor.meta.is_tiled() { tensor } else { tensor.copy() }
}

async fn find_adapter(instance: &wgpu::Instance, name: Option<&str>) -> Result<wgpu::Adapter> {
    let Some(name) = name else {
        return Ok(Gpu::request_adapter(instance).await?);
    };
    let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
    let found: Vec<String> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
    let lower = name.to_lowercase();
    adapters
        .into_iter()
        .find(|adapter| adapter.get_info().name.to_lowercase().contains(&lower))
        .ok_or_else(|| Error::Adapter { wanted: name.to_owned(), found })
}
