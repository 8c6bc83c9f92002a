//! Computes one operation of ggml on the processor, as a graph of llama.cpp does.
#![expect(unsafe_code, reason = "calls operations of ggml")]

use std::ffi::c_void;
use std::ptr;

use llama_cpp_sys_2 as sys;

/// A context of ggml, in which tensors and operations are declared.
#[derive(Clone, Copy)]
pub(crate) struct Graph {
    pub(crate) context: *mut sys::ggml_context,
}

/// What a tensor holds at the beginning.
pub(crate) enum Data {
    Singles(Vec<f32>),
    Halves(Vec<f32>),
    Bytes(Vec<u8>),
}

pub(crate) type Input = (*mut sys::ggml_tensor, Data);

impl Graph {
    pub(crate) fn tensor(self, kind: sys::ggml_type, sizes: [usize; 4]) -> *mut sys::ggml_tensor {
        let [a, b, c, d] = sizes.map(|size| i64::try_from(size).expect("small"));
        // SAFETY: the context lives as long as the closure that `compute` calls.
        unsafe { sys::ggml_new_tensor_4d(self.context, kind, a, b, c, d) }
    }
}

/// What the operation that `declare` returns computes from the tensors that it returns.
///
/// # Safety
/// The tensors are of the graph that `declare` gets, and the last is one of single numbers.
pub(crate) unsafe fn compute(
    threads: i32,
    declare: impl FnOnce(Graph) -> (Vec<Input>, *mut sys::ggml_tensor),
) -> Vec<f32> {
    // SAFETY: tensors, graph and buffer are used while their context lives, every tensor is
    // filled with as many bytes as it has, and all is freed at the end.
    unsafe {
        let params = sys::ggml_init_params {
            mem_size: 1 << 20,
            mem_buffer: ptr::null_mut(),
            no_alloc: true,
        };
        let context = sys::ggml_init(params);
        let (inputs, out) = declare(Graph { context });
        let graph = sys::ggml_new_graph(context);
        sys::ggml_build_forward_expand(graph, out);
        let device = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU);
        let backend = sys::ggml_backend_dev_init(device, ptr::null());
        set_threads(device, backend, threads);
        let buffer = sys::ggml_backend_alloc_ctx_tensors(context, backend);
        for (tensor, data) in &inputs {
            data.fill(*tensor);
        }
        let status = sys::ggml_backend_graph_compute(backend, graph);
        assert_eq!(status, sys::GGML_STATUS_SUCCESS);
        let bytes = sys::ggml_nbytes(out);
        let mut found = vec![0.0_f32; bytes / size_of::<f32>()];
        sys::ggml_backend_tensor_get(out, found.as_mut_ptr().cast(), 0, bytes);
        sys::ggml_backend_buffer_free(buffer);
        sys::ggml_backend_free(backend);
        sys::ggml_free(context);
        found
    }
}

impl Data {
    /// # Safety
    /// The tensor has a buffer.
    unsafe fn fill(&self, tensor: *mut sys::ggml_tensor) {
        let fill = |bytes: *const c_void, len: usize| {
            // SAFETY: the tensor has as many bytes as are copied.
            unsafe {
                assert_eq!(sys::ggml_nbytes(tensor), len, "as many bytes as the tensor has");
                sys::ggml_backend_tensor_set(tensor, bytes, 0, len);
            }
        };
        match self {
            Self::Singles(numbers) => fill(numbers.as_ptr().cast(), size_of_val(&numbers[..])),
            Self::Halves(numbers) => {
                let halves: Vec<u16> = numbers.iter().copied().map(half).collect();
                fill(halves.as_ptr().cast(), size_of_val(&halves[..]));
            }
            Self::Bytes(bytes) => fill(bytes.as_ptr().cast(), bytes.len()),
        }
    }
}

/// # Safety
/// The backend is one of the device.
unsafe fn set_threads(device: sys::ggml_backend_dev_t, backend: sys::ggml_backend_t, threads: i32) {
    // SAFETY: the device is one of the registry, and its function has this type.
    unsafe {
        let registry = sys::ggml_backend_dev_backend_reg(device);
        let name = c"ggml_backend_set_n_threads";
        let address = sys::ggml_backend_reg_get_proc_address(registry, name.as_ptr());
        assert!(!address.is_null(), "the backend of the processor has threads");
        let set: unsafe extern "C" fn(sys::ggml_backend_t, i32) = std::mem::transmute(address);
        set(backend, threads);
    }
}

/// The half number next to one.
pub(crate) fn half(number: f32) -> u16 {
    // SAFETY: a function of a number.
    unsafe { sys::ggml_fp32_to_fp16(number) }
}

/// The number, in half precision.
pub(crate) fn rounded(number: f32) -> f32 {
    // SAFETY: a function of a number.
    unsafe { sys::ggml_fp16_to_fp32(half(number)) }
}

/// Numbers that look like chance and are always the same.
pub(crate) struct Numbers(pub(crate) u32);

impl Numbers {
    /// At least 0, below 65,536.
    pub(crate) fn next(&mut self) -> u16 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        u16::try_from(self.0 >> 16).expect("16 bits")
    }

    /// Half numbers from `-size` to `size`.
    pub(crate) fn halves(&mut self, len: usize, size: f32) -> Vec<f32> {
        let mut next = || rounded((f32::from(self.next()) / 65_536.0 * 2.0 - 1.0) * size);
        (0..len).map(|_| next()).collect()
    }
}
