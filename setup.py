"""The one thing pyproject.toml cannot say yet: the kernel is optional. Without a compiler its Python twin serves."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "narrows.runtime.codec._kernel",
            ["runtime/codec/_kernel.c"],
            extra_compile_args=["-O3"],
            py_limited_api=True,
            optional=True,
        )
    ],
    # One wheel serves every Python from 3.11 on.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
