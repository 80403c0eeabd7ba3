"""The check of all annotations while tests run: shapes by jaxtyping, the rest by beartype; an int is a float, too."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
