//! Matrices of type Q4_1, which `cmake/multiply_q4_1.h` multiplies on processors with AVX2 as
//! llama.cpp does, to the bit, whatever stands beside a row or column.
#![expect(unsafe_code, reason = "calls an operation of ggml")]

use llama_cpp_sys_2 as sys;

use crate::graph::{Data, Graph, Numbers, compute, half, rounded};

const BLOCK: usize = 32;

#[derive(Debug, Clone, Copy)]
struct Shape {
    /// Weights of a row, in blocks.
    blocks: usize,
    rows: usize,
    columns: usize,
    matrices: usize,
    threads: i32,
}

const SHAPE: Shape = Shape { blocks: 18, rows: 64, columns: 1, matrices: 1, threads: 2 };

/// A block of weights: each is its number, from 0 to 15, times the scale, plus the least one.
#[derive(Debug, Clone)]
struct Weights {
    scale: f32,
    least: f32,
    numbers: [u8; BLOCK],
}

/// A block of a column: numbers that Q8_1 keeps as they are.
#[derive(Debug, Clone)]
struct Column {
    scale: f32,
    numbers: [i8; BLOCK],
}

struct Inputs {
    shape: Shape,
    /// By matrix, row, block.
    weights: Vec<Weights>,
    /// By matrix, column, block.
    columns: Vec<Column>,
}

impl Weights {
    fn new(numbers: &mut Numbers) -> Self {
        let scale = rounded(f32::from(numbers.next()) / 1e6);
        let least = rounded(-f32::from(numbers.next()) / 1e5);
        let numbers =
            std::array::from_fn(|_| u8::try_from(numbers.next() >> 12).expect("four bits"));
        Self { scale, least, numbers }
    }

    /// As a file has them.
    fn bytes(&self) -> Vec<u8> {
        let (low, high) = self.numbers.split_at(BLOCK / 2);
        let factors = [half(self.scale), half(self.least)].into_iter().flat_map(u16::to_le_bytes);
        factors.chain(low.iter().zip(high).map(|(low, high)| low | high << 4)).collect()
    }
}

impl Column {
    /// The greatest of a block is 127 times a power of two, so that nothing is rounded.
    fn new(numbers: &mut Numbers) -> Self {
        let scale = 2_f32.powi(-i32::from(numbers.next() % 8));
        let mut number = || i8::try_from(i32::from(numbers.next() % 255) - 127).expect("a byte");
        let mut block: [i8; BLOCK] = std::array::from_fn(|_| number());
        block[usize::from(numbers.next()) % BLOCK] = -127;
        Self { scale, numbers: block }
    }
}

impl Inputs {
    fn new(shape: Shape, seed: u32) -> Self {
        let mut numbers = Numbers(seed);
        let Shape { blocks, rows, columns, matrices, .. } = shape;
        let weights = (0..matrices * rows * blocks).map(|_| Weights::new(&mut numbers)).collect();
        let columns = (0..matrices * columns * blocks).map(|_| Column::new(&mut numbers)).collect();
        Self { shape, weights, columns }
    }

    /// By matrix, column, row.
    fn each<T>(&self, product: impl Fn(&[Weights], &[Column]) -> T) -> Vec<T> {
        let Shape { blocks, rows, columns, .. } = self.shape;
        let mut all = Vec::new();
        for (place, column) in self.columns.chunks(blocks).enumerate() {
            let matrix = &self.weights[place / columns * rows * blocks..][..rows * blocks];
            all.extend(matrix.chunks(blocks).map(|row| product(row, column)));
        }
        all
    }

    /// What ggml computes, by matrix, column, row.
    fn found(&self) -> Vec<f32> {
        let Shape { blocks, rows, columns, matrices, threads } = self.shape;
        let declare = |graph: Graph| {
            let length = blocks * BLOCK;
            let weights = graph.tensor(sys::GGML_TYPE_Q4_1, [length, rows, matrices, 1]);
            let from = graph.tensor(sys::GGML_TYPE_F32, [length, columns, matrices, 1]);
            // SAFETY: both tensors are of this context.
            let out = unsafe { sys::ggml_mul_mat(graph.context, weights, from) };
            let bytes = self.weights.iter().flat_map(Weights::bytes).collect();
            let numbers = self.columns.iter().flat_map(|column| {
                column.numbers.iter().map(|number| f32::from(*number) * column.scale)
            });
            (vec![(weights, Data::Bytes(bytes)), (from, Data::Singles(numbers.collect()))], out)
        };
        // SAFETY: the tensors are of this graph, and a product is one of single numbers.
        unsafe { compute(threads, declare) }
    }
}

fn whole_product(weights: &[u8], numbers: &[i8]) -> i32 {
    let pairs = weights.iter().zip(numbers);
    pairs.map(|(weight, number)| i32::from(*weight) * i32::from(*number)).sum()
}

/// A block's part that the least weight has: the sum of the column is kept as a half number.
fn column_sum(column: &Column) -> f32 {
    let sum: i32 = column.numbers.iter().map(|number| i32::from(*number)).sum();
    rounded(sum as f32 * column.scale)
}

/// With single numbers, as `ggml_vec_dot_q4_1_q8_1` does it on processors with AVX2: each four
/// weights of a block have a sum of their own.
fn in_order(weights: &[Weights], column: &[Column]) -> f32 {
    let mut fours = [0.0_f32; BLOCK / 4];
    let mut least = 0.0_f32;
    for (weights, column) in weights.iter().zip(column) {
        let scale = weights.scale * column.scale;
        let pairs = weights.numbers.chunks(4).zip(column.numbers.chunks(4));
        for (sum, (weights, numbers)) in fours.iter_mut().zip(pairs) {
            *sum = scale.mul_add(whole_product(weights, numbers) as f32, *sum);
        }
        least = weights.least.mul_add(column_sum(column), least);
    }
    let [a, b, c, d, e, f, g, h] = fours;
    (((a + e) + (c + g)) + ((b + f) + (d + h))) + least
}

/// With double numbers, and how great its parts are.
fn exactly(weights: &[Weights], column: &[Column]) -> (f64, f64) {
    weights.iter().zip(column).fold((0.0, 0.0), |(sum, size), (weights, column)| {
        let scaled = f64::from(weights.scale) * f64::from(column.scale);
        let product = scaled * f64::from(whole_product(&weights.numbers, &column.numbers));
        let least = f64::from(weights.least) * f64::from(column_sum(column));
        (sum + product + least, size + product.abs() + least.abs())
    })
}

fn shapes() -> Vec<Shape> {
    let mut shapes: Vec<Shape> = (1..=13).map(|columns| Shape { columns, ..SHAPE }).collect();
    shapes.extend([
        Shape { blocks: 1, rows: 8, ..SHAPE },
        Shape { blocks: 1, rows: 8, columns: 9, ..SHAPE },
        // More blocks than are taken out of their nibbles at once, and just as many.
        Shape { blocks: 101, columns: 3, ..SHAPE },
        Shape { blocks: 101, columns: 23, ..SHAPE },
        Shape { blocks: 48, columns: 64, ..SHAPE },
        Shape { rows: 1536, columns: 70, ..SHAPE },
        Shape { threads: 1, columns: 8, ..SHAPE },
        Shape { threads: 5, rows: 24, columns: 12, ..SHAPE },
        Shape { matrices: 3, ..SHAPE },
        Shape { matrices: 3, columns: 11, threads: 4, ..SHAPE },
    ]);
    shapes
}

#[test]
fn products_are_llama_cpp_s_to_the_bit() {
    if !has_avx2() {
        return;
    }
    for (seed, shape) in (1..).zip(shapes()) {
        let inputs = Inputs::new(shape, seed);
        let (found, expected) = (inputs.found(), inputs.each(in_order));
        let other = found.iter().zip(&expected).position(|(found, expected)| found != expected);
        assert!(found.len() == expected.len() && other.is_none(), "{other:?} of {shape:?}");
    }
}

/// The results cannot tell, so the names of functions do.
#[test]
fn a_build_for_avx2_has_it() {
    if !has_avx2() || !cfg!(target_os = "linux") {
        return;
    }
    let program = std::env::current_exe().and_then(std::fs::read).expect("this program");
    // From its end, or it would find itself.
    let name: String = "lenap_ylpitlum_eebr".chars().rev().collect();
    let found = program.windows(name.len()).any(|bytes| bytes == name.as_bytes());
    assert!(found, "llama.cpp was built without cmake/multiply_q4_1.h");
}

#[test]
fn products_are_right_on_every_processor() {
    // Rows that fill no panel are llama.cpp's.
    let odd = [Shape { rows: 12, columns: 5, ..SHAPE }, Shape { rows: 1, ..SHAPE }];
    for (seed, shape) in (1..).zip(shapes().into_iter().chain(odd)) {
        let inputs = Inputs::new(shape, seed);
        let (found, expected) = (inputs.found(), inputs.each(exactly));
        assert_eq!(found.len(), expected.len(), "{shape:?}");
        for (found, (expected, size)) in found.into_iter().zip(expected) {
            let off = (f64::from(found) - expected).abs();
            assert!(off <= 1e-5 * size, "{found} instead of {expected}: {shape:?}");
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}
