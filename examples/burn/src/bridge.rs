//! One wgpu device for burn and wgkv, and burn's tensors as rows that wgkv's passes bind.
//!
//! burn records its kernels (through cubecl) on a thread of its own and submits them in batches.
//! Both sides submit to one queue, whose order is all the synchronisation there is. Nothing is
//! copied and nothing waits:
//!
//! 1. [`Bridge::view`] finds where tensors lie, and flushes: burn submits all that it recorded;
//! 2. the caller submits an encoder that reads and writes the views, and only then drops them;
//! 3. what burn records later is submitted later, so it sees what was written.
//!
//! burn keeps a stream of work for each thread: use tensors on the thread that views them.

use burn::backend::wgpu::{MemoryConfiguration, Wgpu, WgpuResource};
use burn::cubecl::{client::Client, server::Handle, wgpu::AutoCompiler, wgpu::WgpuServer};
use burn::tensor::{DType, Device, Tensor, wgpu::WgpuSetup};
use std::error::Error;
use wgkv::{Element, Gpu, Rows, wgpu};

/// A device that burn and wgkv share.
pub struct Bridge {
    /// The device as wgkv knows it.
    pub gpu: Gpu,
    /// The device as burn knows it.
    pub device: Device,
    client: Client,
}

/// Where a tensor lies. Its memory is not used for anything else while this lives.
pub struct View {
    resource: WgpuResource,
    element: Element,
    _handle: Handle,
}

impl Bridge {
    /// Makes a device on the adapter that [`Gpu::request_adapter`] chooses and gives it to both.
    pub fn open() -> Result<Self, Box<dyn Error>> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let adapter = pollster::block_on(Gpu::request_adapter(&instance))?;
        // burn chooses kernels by what the adapter has, so the device must have it all. But
        // experimental features need unsafe code, and mappable buffers make all buffers slower.
        let left_out = wgpu::Features::all_experimental_mask() | wgpu::Features::MAPPABLE_PRIMARY_BUFFERS;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("burn and wgkv"),
            required_features: adapter.features() - left_out,
            required_limits: adapter.limits(),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
        let gpu = Gpu::new(device.clone(), queue.clone());
        let backend = adapter.get_info().backend;
        // So each tensor has a buffer to itself, which never moves. In a pooled one wgpu, which
        // judges by whole buffers, would refuse a pass that reads one tensor and writes another.
        let options = Device::wgpu_options().memory_config(MemoryConfiguration::ExclusivePages);
        let device = options.setup(WgpuSetup { instance, backend, adapter, device, queue }).init()?;
        // A device has no public road to its client, but any tensor has.
        let tensor = Tensor::<1>::empty([1], &device).try_into_primitive::<Wgpu>().map_err(|error| format!("{error:?}"))?;
        Ok(Self { gpu, device, client: tensor.client })
    }

    /// Finds where tensors lie, and submits all that burn recorded. One that is to be written to
    /// must be new ([`Tensor::empty`]): of a slice or a transposed one, the view is of a copy.
    pub fn view<const N: usize>(&self, tensors: [Tensor<2>; N]) -> Result<[View; N], Box<dyn Error>> {
        let mut views = Vec::with_capacity(N);
        for tensor in tensors {
            let mut tensor = tensor.try_into_primitive::<Wgpu>().map_err(|error| format!("{error:?}"))?;
            if !tensor.is_contiguous() || tensor.meta.is_tiled() {
                tensor = tensor.copy();
            }
            let element = match tensor.dtype {
                DType::F32 => Element::F32,
                DType::F16 => Element::F16,
                other => return Err(format!("rows must be f32 or f16, but are {other:?}").into()),
            };
            let resource = self.client.get_resource::<WgpuServer<AutoCompiler>>(tensor.handle.clone())?.resource().clone();
            views.push(View { resource, element, _handle: tensor.handle });
        }
        // burn 0.22 has submitted when it says where a tensor lies, but promises only this.
        self.client.flush()?;
        views.try_into().map_err(|_| "there is a view of each tensor".into())
    }
}

impl View {
    /// Returns the rows as wgkv takes them.
    pub fn rows(&self) -> Rows<'_> {
        Rows::new(&self.resource.buffer, self.element).at(self.resource.offset)
    }
}
