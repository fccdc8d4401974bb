// What can go wrong, by the name of the sentence that tells it (words.js).

/** @typedef {"incomplete" | "newer" | "revoked" | "expired" | "damaged" | "password" | "offline" |
 *   "busy" | "blocked" | "tooLarge" | "refused"} Reason */

export class Failure extends Error {
  /** @param {Reason} reason */
  constructor(reason) {
    super(reason);
    this.reason = reason;
  }
}

/**
 * The sentence for any error.
 * @param {unknown} error
 * @returns {Reason}
 */
export function reasonOf(error) {
  return error instanceof Failure ? error.reason : "damaged";
}
