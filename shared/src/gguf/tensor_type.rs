//! The ggml element types: id in the file, name, and the shape of one block. A table and nothing else; how
//! a block is decoded is the business of `kernels`.

use std::fmt;

macro_rules! tensor_types {
    ($($name:ident = $id:literal, $block_len:literal, $block_bytes:literal;)*) => {
        /// How the elements of a tensor are stored. Rows are made of whole blocks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[expect(non_camel_case_types, missing_docs, reason = "the names are ggml's own")]
        #[repr(u32)]
        pub enum TensorType { $($name = $id),* }

        impl TensorType {
            /// Every type, by id.
            pub const ALL: &[TensorType] = &[$(TensorType::$name),*];

            /// The type with this id in a GGUF file.
            pub fn from_id(id: u32) -> Option<Self> {
                match id { $($id => Some(TensorType::$name),)* _ => None }
            }

            /// ggml's name of the type.
            pub const fn name(self) -> &'static str {
                match self { $(TensorType::$name => stringify!($name)),* }
            }

            /// Elements in one block.
            pub const fn block_len(self) -> usize {
                match self { $(TensorType::$name => $block_len),* }
            }

            /// Bytes of one block.
            pub const fn block_bytes(self) -> usize {
                match self { $(TensorType::$name => $block_bytes),* }
            }
        }
    };
}

// Source: `enum ggml_type` of ggml.h and the block structs of ggml-common.h, llama.cpp as of November 2026.
tensor_types! {
    F32 = 0, 1, 4;
    F16 = 1, 1, 2;
    Q4_0 = 2, 32, 18;
    Q4_1 = 3, 32, 20;
    Q5_0 = 6, 32, 22;
    Q5_1 = 7, 32, 24;
    Q8_0 = 8, 32, 34;
    Q8_1 = 9, 32, 36;
    Q2_K = 10, 256, 84;
    Q3_K = 11, 256, 110;
    Q4_K = 12, 256, 144;
    Q5_K = 13, 256, 176;
    Q6_K = 14, 256, 210;
    Q8_K = 15, 256, 292;
    IQ2_XXS = 16, 256, 66;
    IQ2_XS = 17, 256, 74;
    IQ3_XXS = 18, 256, 98;
    IQ1_S = 19, 256, 50;
    IQ4_NL = 20, 32, 18;
    IQ3_S = 21, 256, 110;
    IQ2_S = 22, 256, 82;
    IQ4_XS = 23, 256, 136;
    I8 = 24, 1, 1;
    I16 = 25, 1, 2;
    I32 = 26, 1, 4;
    I64 = 27, 1, 8;
    F64 = 28, 1, 8;
    IQ1_M = 29, 256, 56;
    BF16 = 30, 1, 2;
    TQ1_0 = 34, 256, 54;
    TQ2_0 = 35, 256, 66;
    MXFP4 = 39, 32, 17;
    NVFP4 = 40, 64, 36;
    Q1_0 = 41, 128, 18;
    Q2_0 = 42, 64, 18;
}

impl TensorType {
    /// The type's id in a GGUF file.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of a row of `len` elements; `None` if `len` is not a whole number of blocks or overflows.
    pub const fn row_bytes(self, len: usize) -> Option<usize> {
        if !len.is_multiple_of(self.block_len()) {
            return None;
        }
        (len / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
