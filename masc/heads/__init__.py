"""Output heads: normalised distributions over the N tokens of a codebook.

`masc.heads.registry` builds them and imports torch; `masc.heads.config`, their configs, does not."""
