export function decompress(data: Uint8Array, into?: Uint8Array): Uint8Array;
