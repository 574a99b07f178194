//! Plain CPU versions of the kernels, one module each under the kernel's name: slow, in the shader's shape.
