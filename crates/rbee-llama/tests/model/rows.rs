//! Flash attention of a processor for few queries, which `cmake/attend_rows.h` computes: as exact
//! as single numbers allow, and the same whatever stands beside a query.
#![expect(unsafe_code, reason = "calls an operation of ggml")]

use llama_cpp_sys_2 as sys;

use crate::graph::{Data, Graph, Numbers, compute, rounded};

/// By how much a result may differ from one computed with double numbers. What sums values up
/// in half numbers, as llama.cpp does, is hundreds of times as far off.
const NOISE: f64 = 4e-6;

#[derive(Debug, Clone, Copy)]
struct Shape {
    key_dims: usize,
    value_dims: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    streams: usize,
    threads: i32,
    sinks: bool,
    softcap: f32,
    max_bias: f32,
}

const SHAPE: Shape = Shape {
    key_dims: 64,
    value_dims: 64,
    heads: 9,
    kv_heads: 3,
    queries: 1,
    keys: 256,
    streams: 1,
    threads: 2,
    sinks: false,
    softcap: 0.0,
    max_bias: 0.0,
};

/// What the operation reads. Every number is one of half precision.
struct Inputs {
    shape: Shape,
    /// By stream, query, head.
    q: Vec<f32>,
    /// By stream, key, head, as a cache has them.
    k: Vec<f32>,
    v: Vec<f32>,
    /// By stream, query.
    mask: Vec<f32>,
    sinks: Vec<f32>,
}

impl Inputs {
    /// Each stream sees all keys but some in between, and the last ones as causality has it.
    fn new(shape: Shape, seed: u32) -> Self {
        let mut numbers = Numbers(seed);
        let Shape { key_dims, value_dims, heads, kv_heads, queries, keys, streams, .. } = shape;
        let q = numbers.halves(streams * queries * heads * key_dims, 2.0);
        let k = numbers.halves(streams * keys * kv_heads * key_dims, 2.0);
        let v = numbers.halves(streams * keys * kv_heads * value_dims, 2.0);
        let sinks = numbers.halves(heads, 3.0);
        let mut mask = Vec::new();
        for stream in 0..streams {
            for query in 0..queries {
                let seen = keys - stream * (keys / 3) - (queries - 1 - query);
                let sees = |key: usize| key < seen && key % 97 != 5 && !(60..150).contains(&key);
                let distance = |key: usize| rounded(-((seen - key) as f32) / 64.0);
                mask.extend((0..keys).map(|key| match sees(key) {
                    true if shape.max_bias > 0.0 => distance(key),
                    true => 0.0,
                    false => f32::NEG_INFINITY,
                }));
            }
        }
        Self { shape, q, k, v, mask, sinks }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.shape.key_dims as f32).sqrt()
    }

    /// Computed with double numbers, one after the other.
    fn expected(&self) -> Vec<f64> {
        let shape = self.shape;
        let mut all = Vec::new();
        for stream in 0..shape.streams {
            for query in 0..shape.queries {
                for head in 0..shape.heads {
                    all.extend(self.expected_row(stream, query, head));
                }
            }
        }
        all
    }

    fn expected_row(&self, stream: usize, query: usize, head: usize) -> Vec<f64> {
        let Shape { key_dims, value_dims, heads, kv_heads, queries, keys, .. } = self.shape;
        let kv_head = head / (heads / kv_heads);
        let q_at = ((stream * queries + query) * heads + head) * key_dims;
        let slope = slope(self.shape, head);
        let softcap = f64::from(self.shape.softcap);
        let score = |key: usize| {
            let mask = f64::from(self.mask[(stream * queries + query) * keys + key]);
            let k_at = ((stream * keys + key) * kv_heads + kv_head) * key_dims;
            let pairs = self.q[q_at..q_at + key_dims].iter().zip(&self.k[k_at..k_at + key_dims]);
            let product: f64 = pairs.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
            let product = product * f64::from(self.scale());
            let bent = if softcap > 0.0 { softcap * (product / softcap).tanh() } else { product };
            bent + if mask == 0.0 { 0.0 } else { slope * mask }
        };
        let scores: Vec<f64> = (0..keys).map(score).collect();
        let sink = self.shape.sinks.then(|| f64::from(self.sinks[head]));
        let most = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().copied().chain(sink).map(|s| (s - most).exp()).sum();
        let mut values = vec![0.0; value_dims];
        for (key, score) in scores.iter().enumerate() {
            let weight = (score - most).exp() / total;
            let at = ((stream * keys + key) * kv_heads + kv_head) * value_dims;
            for (sum, value) in values.iter_mut().zip(&self.v[at..at + value_dims]) {
                *sum += weight * f64::from(*value);
            }
        }
        values
    }

    /// What ggml computes, by stream, query, head.
    fn found(&self) -> Vec<f32> {
        let shape = self.shape;
        let Shape { key_dims, value_dims, heads, kv_heads, queries, keys, streams, .. } = shape;
        let declare = |graph: Graph| {
            let q = graph.tensor(sys::GGML_TYPE_F32, [key_dims, heads, queries, streams]);
            let k = graph.tensor(sys::GGML_TYPE_F16, [key_dims, kv_heads, keys, streams]);
            let v = graph.tensor(sys::GGML_TYPE_F16, [value_dims, kv_heads, keys, streams]);
            let mask = graph.tensor(sys::GGML_TYPE_F16, [keys, queries, 1, streams]);
            let sinks = graph.tensor(sys::GGML_TYPE_F32, [heads, 1, 1, 1]);
            let (scale, bias, cap) = (self.scale(), shape.max_bias, shape.softcap);
            // SAFETY: all tensors are of this context.
            let out = unsafe {
                let turned = |tensor| sys::ggml_permute(graph.context, tensor, 0, 2, 1, 3);
                let (q, k, v) = (turned(q), turned(k), turned(v));
                let out = sys::ggml_flash_attn_ext(graph.context, q, k, v, mask, scale, bias, cap);
                if shape.sinks {
                    sys::ggml_flash_attn_ext_add_sinks(out, sinks);
                }
                out
            };
            let inputs = vec![
                (q, Data::Singles(self.q.clone())),
                (k, Data::Halves(self.k.clone())),
                (v, Data::Halves(self.v.clone())),
                (mask, Data::Halves(self.mask.clone())),
                (sinks, Data::Singles(self.sinks.clone())),
            ];
            (inputs, out)
        };
        // SAFETY: the tensors are of this graph, and attention comes to single numbers.
        let found = unsafe { compute(shape.threads, declare) };
        assert_eq!(found.len(), streams * queries * heads * value_dims);
        found
    }
}

/// How much a head heeds distance, as the paper on ALiBi has it.
fn slope(shape: Shape, head: usize) -> f64 {
    if shape.max_bias == 0.0 {
        return 1.0;
    }
    let bias = f64::from(shape.max_bias);
    let power = 1 << shape.heads.ilog2();
    let of = |step: f64, place: usize| 2_f64.powf(-step * place as f64 / power as f64);
    if head < power { of(bias, head + 1) } else { of(bias / 2.0, 2 * (head - power) + 1) }
}

#[test]
fn few_queries_are_as_exact_as_single_numbers_allow() {
    let shapes = [
        SHAPE,
        Shape { queries: 2, ..SHAPE },
        Shape { queries: 63, keys: 512, ..SHAPE },
        Shape { keys: 8, threads: 1, ..SHAPE },
        Shape { keys: 1000, ..SHAPE },
        Shape { keys: 2056, threads: 5, ..SHAPE },
        Shape { keys: 1024, streams: 3, queries: 4, ..SHAPE },
        Shape { heads: 7, kv_heads: 1, keys: 600, ..SHAPE },
        Shape { heads: 8, kv_heads: 8, ..SHAPE },
        Shape { heads: 8, kv_heads: 4, queries: 3, ..SHAPE },
        Shape { heads: 32, kv_heads: 8, key_dims: 128, value_dims: 128, keys: 768, ..SHAPE },
        Shape { key_dims: 80, value_dims: 80, ..SHAPE },
        Shape { key_dims: 576, value_dims: 512, heads: 16, kv_heads: 1, keys: 520, ..SHAPE },
        Shape { sinks: true, keys: 600, ..SHAPE },
        Shape { softcap: 5.0, queries: 5, ..SHAPE },
        Shape { max_bias: 8.0, keys: 512, ..SHAPE },
    ];
    for (seed, shape) in (1..).zip(shapes) {
        let inputs = Inputs::new(shape, seed);
        let pairs = inputs.found().into_iter().zip(inputs.expected());
        let most = pairs.map(|(found, expected)| (f64::from(found) - expected).abs());
        let most = most
            .fold(0.0, |most: f64, one| if one.is_nan() { f64::INFINITY } else { most.max(one) });
        assert!(most < NOISE, "{most:e}: {shape:?}");
    }
}

#[test]
fn who_sees_nothing_gets_nothing() {
    let mut inputs = Inputs::new(Shape { queries: 2, keys: 512, ..SHAPE }, 1);
    inputs.mask[..512].fill(f32::NEG_INFINITY);
    let found = inputs.found();
    let (first, second) = found.split_at(found.len() / 2);
    assert!(first.iter().all(|number| *number == 0.0));
    assert!(second.iter().any(|number| *number != 0.0));
}

#[test]
fn a_query_is_computed_alike_whatever_stands_beside_it() {
    let many = Inputs::new(Shape { streams: 3, queries: 5, keys: 1280, threads: 3, ..SHAPE }, 7);
    let found = many.found();
    let row = SHAPE.heads * SHAPE.value_dims;
    // The last stream sees the first third of the keys.
    for (stream, query, keys, threads) in [(2, 4, 512, 1), (2, 0, 768, 2), (1, 2, 1024, 4)] {
        let shape = Shape { keys, threads, ..SHAPE };
        let mut one = Inputs::new(shape, 0);
        let place = stream * 5 + query;
        let part = |all: &[f32], at: usize, len: usize| all[at * many.shape.keys..][..len].to_vec();
        one.q = many.q[place * SHAPE.heads * 64..][..SHAPE.heads * 64].to_vec();
        one.mask = part(&many.mask, place, keys);
        let width = SHAPE.kv_heads * 64;
        one.k = many.k[stream * many.shape.keys * width..][..keys * width].to_vec();
        one.v = many.v[stream * many.shape.keys * width..][..keys * width].to_vec();
        assert!(many.mask[place * many.shape.keys + keys..][..8].iter().all(|m| m.is_infinite()));
        assert!(one.found() == found[place * row..][..row], "stream {stream}, query {query}");
    }
}
