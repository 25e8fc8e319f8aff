"""The error that names a record's file, line and field."""


class RecordError(ValueError):
    """A record that cannot be used: says where, which field, what is wrong and what to do.

    `problem` is the same for every record with the same fault, so that faults can be counted by
    it; what differs from record to record goes into `detail`.
    """

    def __init__(self, place: str, field: str, problem: str, remedy: str, detail: str = "") -> None:
        # All arguments go to the base class, or the exception could not cross a worker process.
        super().__init__(place, field, problem, remedy, detail)
        self.place, self.field, self.problem = place, field, problem
        self.remedy, self.detail = remedy, detail

    def __str__(self) -> str:
        field = f"field `{self.field}`: " if self.field else ""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.place}: {field}{self.problem}{detail}; {self.remedy}"

    @property
    def reason(self) -> str:
        """Key to count by: the field without its index, and the problem."""
        field = self.field.split("[")[0]
        return f"{field}: {self.problem}" if field else self.problem


def not_utf8(error: UnicodeDecodeError, place: str, where: str, field: str = "") -> RecordError:
    """Where a text's bytes are not UTF-8; `where` says what they are counted in."""
    detail = f"byte {error.start + 1} {where} is 0x{error.object[error.start]:02x}"
    return RecordError(place, field, "not UTF-8", "convert the file to UTF-8, for example with iconv", detail)


def first_line(error: Exception) -> str:
    """The first line of an error's message, its class where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
