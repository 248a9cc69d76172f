if __name__ != "kdtool.cache":
    raise ImportError("this folder is the package 'kdtool.cache': import that name")
