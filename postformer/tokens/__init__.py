"""What a token is: bytes or pieces of text."""

from postformer.tokens.text import BPE, TOKENS, Bytes, StreamDecoder, TokenizerError, Tokens, load_tokens

__all__ = ["BPE", "TOKENS", "Bytes", "StreamDecoder", "TokenizerError", "Tokens", "load_tokens"]
