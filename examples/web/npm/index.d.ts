/** The shape of the attention and how keys and values are stored. What is left out has the default that is named. */
export interface Options {
  /** Tokens that the sequence may hold at once. All memory is allocated by `Cache.open`. */
  tokens: number;
  /** Tokens that it may reach where it slides, and does not hold at once. Default: what `tokens` has room for. */
  maxTokens?: number;
  /** Tokens that every query sees, its own the last of them, as models with sliding-window attention want it. Default: all that are held. */
  slidingWindow?: number;
  /** Layers of the model. Default 1. */
  layers?: number;
  /** Query heads of a layer: a multiple of `kvHeads`, 16 times at most. */
  queryHeads: number;
  /** KV heads of a layer. */
  kvHeads: number;
  /** Channels of a head: 64, 80, 96, 128 or 256. */
  headDim: number;
  /** Rotary position embedding, which the cache applies to keys and queries. Default none: they come as they shall be. */
  rope?: {
    /** Base of the frequencies, such as 10000. */
    theta: number;
    /** Channels that turn. Default `headDim`. */
    dim?: number;
    /** Whether pairs are channels 2i and 2i+1, and not i and i + dim/2. Default false. */
    interleaved?: boolean;
  };
  /** 'f16', 'rtn', 'hadamard', 'centred' (better with a calibration), 'rotate-kv' (with one), 'aligned-f16'. Default 'hadamard'. */
  codec?: string;
  /** Bits of a key's code: 2, 3, 4, 8, or 16. Default 4. */
  keyBits?: number;
  /** Bits of a value's code. Default 4. */
  valueBits?: number;
  /** Channels that share a scale: 32, 64 or 128. Default 64. */
  group?: number;
  /** How scales and zeros are stored: 'f16' or 'f8'. Default 'f16'; 'centred' has a form of its own. */
  scales?: string;
  /** First tokens that stay in half precision. Default 4. */
  sinks?: number;
  /** Latest tokens that stay in half precision, 128 or none at least. Default 128. */
  window?: number;
  /** The bytes of a calibration that wgkv saved, for 'rotate-kv' and 'centred'. */
  calibration?: Uint8Array;
}

/**
 * One sequence's keys and values, compressed on the GPU. Everything that is wrong throws an `Error` with a text that names the thing, the
 * number wanted and the number had; afterwards the cache holds what it held.
 */
export class Cache {
  private constructor();

  /** Allocates a cache and compiles its kernels. Caches share one device. */
  static open(options: Options): Promise<Cache>;

  /**
   * Appends new tokens' keys and values to one layer: `[tokens, kvHeads, headDim]` each, keys before RoPE. Every layer must be given its own,
   * in any order, before the next tokens.
   */
  append(layer: number, keys: Float32Array, values: Float32Array): void;

  /**
   * Causal attention of the tokens appended last over all that the layer holds, themselves included: `[tokens, queryHeads, headDim]`, as
   * `queries`, which come before RoPE. Scores are divided by the square root of `headDim`.
   */
  attend(layer: number, queries: Float32Array): Promise<Float32Array>;

  /** Takes back all tokens but the first `tokens`, such as an answer that is to be written anew. */
  truncate(tokens: number): void;

  /**
   * Lets go of old tokens, so that an endless stream has room: all but the first ones (`sinks`) and the last `keep`, or up to 127 more. They
   * keep their positions. Returns the first token that is still held. To be called before the next tokens are appended.
   */
  slide(keep: number): number;

  /** All that is held, as the bytes of a safetensors file. */
  saveTo(): Promise<Uint8Array>;

  /** Fills an empty cache, opened with the same options (but for `tokens`), with what another saved. Damaged and foreign bytes are refused. */
  loadFrom(bytes: Uint8Array): void;

  /** Tokens appended, those that it slid beyond among them. */
  readonly tokens: number;
  /** Bytes that the tokens held need, scales and half precision rows included. */
  readonly bytes: number;
  /** Bytes allocated on the GPU for keys and values. */
  readonly bytesAllocated: number;
  /** All stored bits divided by the numbers they stand for. */
  readonly bitsPerElement: number;
  /** Resolves with the reason when the GPU's device is lost. Every cache is lost with it; `Cache.open` makes a new device. */
  readonly lost: Promise<string>;
  /** What is stored how, with all sizes. */
  toString(): string;

  /** Gives the GPU's memory back at once. The cache cannot be used any more. */
  free(): void;
  [Symbol.dispose](): void;
}
